"""The whole way as a person goes it: the real command, the real engine and model, a real browser."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from engine.paths import models_dir

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
START_SECONDS = 300
WRITTEN = 60  # characters: more than the words shown while the chat is being read


class Command:
    """`python -m app.cli` on a port of its own, with chats and settings in a folder of the test."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self, *options: str) -> None:
        self.process = self._run("--port", str(self.port), "--no-browser", *options)
        self._wait_until_it_answers()

    def start_again_on_the_same_port(self) -> tuple[int, str]:
        second = self._run("--port", str(self.port), "--no-browser")
        words = second.communicate(timeout=START_SECONDS)[0]
        return second.returncode, words

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def end(self) -> int:
        """Ctrl-C, as a person ends it."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def _run(self, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "app.cli", *options],
            cwd=ROOT,
            env={**os.environ, "EXPERTFLOW_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.stdout.read()
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the page did not come")


@pytest.fixture(scope="module")
def command(builtin_model, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "cache").symlink_to(models_dir().parent, target_is_directory=True)  # models and kernels are made once
    command = Command(home)
    command.start("--budget", "60%")
    yield command
    if command.process.poll() is None:
        command.kill()


def saved_share(page) -> float:
    """The percentage in the tile "Memory saved"."""
    tile = page.page.locator("#panels .tile", has_text="Memory saved").locator(".tile-hint").inner_text()
    return float(tile.split(" %")[0])


def test_the_plan_is_shown_and_a_question_is_answered_as_it_is_written(command, visit):
    page = visit(command.address)
    page.see("#header", "demo")
    page.see("#budget-words", "288 of 480 experts")
    page.see("#panels .tile", "Speed")
    page.say("Give me three tips for sleeping better.")
    page.see_more_than("#live", WRITTEN)
    early = page.text("#live")
    page.page.wait_for_function(
        "early => document.querySelector('#live').innerText.length > early + 20", arg=len(early)
    )
    page.see("#panels .tile-hit .tile-unit", "%")
    page.page.click("#stop")
    page.wait_for_answer()
    page.see("#chatbot [data-testid=bot]")
    answer = page.answers()[0]
    assert len(answer) > WRITTEN
    page.see("#facts", "tokens/s")
    page.reload()
    page.see("#chatbot [data-testid=bot]")
    assert page.answers() == [answer]


def test_the_budget_moves_during_an_answer_and_the_panels_follow(command, visit):
    page, other = visit(command.address), visit(command.address)
    page.see("#budget-words", "288 of 480 experts")
    other.page.click("#new-chat")
    before = saved_share(page)
    page.say("Write a long story about a lighthouse keeper and his dog.")
    page.see_more_than("#live", WRITTEN)
    other.say("Write a long story about a cat that lives on a ship.")
    other.see_more_than("#live", WRITTEN)  # both are written together
    page.pull_slider_to(0.15)
    page.see("#budget-words", "Move it while an answer is being written")
    page.page.wait_for_function(
        "document.querySelector('#panels .readout').innerText.match(/^(\\d+) of 480/)?.[1] < 100"
    )
    assert saved_share(page) > before + 20
    page.see_more_than("#live", len(page.text("#live")))  # it goes on
    page.see("#panels .chart .ink-miss")
    page.see("#panels .chart .ink-demand")

    other.see("#panels .readout", "of 480 experts in memory")
    for one in (page, other):
        one.page.keyboard.press("Escape")
        one.wait_for_answer()
        assert len(one.answers()) == 1
    assert (command.home / "config" / "settings.toml").read_text().startswith("budget = ")


def test_a_second_instance_says_who_holds_the_port(command):
    code, words = command.start_again_on_the_same_port()
    assert code != 0
    words = " ".join(words.split())
    assert "already running" in words
    assert str(command.process.pid) in words
    assert "Traceback" not in words


def test_a_killed_program_loses_at_most_the_last_second_and_starts_again_as_it_was_left(command, visit):
    page = visit(command.address)
    page.say("Tell me about the sea.")
    seen = page.see_more_than("#live", WRITTEN)
    time.sleep(1.5)  # what is a second old is on disk
    page.forgive_leaving = True
    command.kill()
    address = page.page.url
    page.page.goto("about:blank")

    command.start()
    again = visit(address)
    again.see("#chatbot [data-testid=user]", "Tell me about the sea.")
    again.see("#notice", "interrupted")
    assert again.answers()[0].strip().startswith(seen[: len(seen) // 2])
    again.see("#budget-words", "experts")
    slots = int(again.text("#budget-words").split(": ")[1].split(" of")[0])
    assert slots < 150  # the budget of the test before
    again.page.click("#again")
    again.not_see("#notice .notice")
    again.see_more_than("#live", WRITTEN)
    again.page.click("#stop")
    again.wait_for_answer()


def test_ctrl_c_ends_it_at_once_and_saves_the_answer_in_progress(command, visit):
    page = visit(command.address)
    page.say("Tell me about mountains.")
    page.see_more_than("#live", WRITTEN)
    page.forgive_leaving = True
    page.page.goto("about:blank")
    assert command.end() in (0, 130)
    assert "Traceback" not in command.process.stdout.read()
    command.start()
    again = visit(command.address)
    again.page.click("#chat-list label:has-text('Tell me about mountains.')")
    again.see("#chatbot [data-testid=bot]")
    again.see("#facts", "stopped")
