"""How long a start takes: the whole program launched as a person would, until its page and its chat are there."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.lab.contender_process import last_words
from engine.lab.report import make_report, median_run

LAUNCHER = Path(__file__).parents[2] / "launch.py"
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 900.0  # a first start may have to build the model
STOP_SECONDS = 20.0

Progress = Callable[[str, int, int], None]


class StartFailed(EngineError):
    """The program ended, or never became ready."""


def run(repeats: int, on_progress: Progress) -> dict[str, Any]:
    """Report with one run: medians of `page_seconds` (the page is served) and `ready_seconds` (it can answer).

    One launch more than `repeats` comes first and is not counted: it may have to build or compile. Raises StartFailed.
    """
    launches = []
    for launch in range(repeats + 1):
        launches.append(time_launch())
        on_progress("Starts", launch + 1, repeats + 1)
    return make_report([median_run(launches[1:])], {}, launches=launches[1:], first_launch=launches[0])


def time_launch(command: tuple[str, ...] = (sys.executable, str(LAUNCHER))) -> dict[str, float]:
    """Seconds from the command to the page and to a ready engine. Raises StartFailed."""
    address = f"http://127.0.0.1:{_free_port()}"
    began = time.perf_counter()
    with _running([*command, "--no-browser", "--port", address.rpartition(":")[2]]) as alive:
        _wait_for(lambda: _get(f"{address}/") is not None, alive)
        page_seconds = time.perf_counter() - began
        _wait_for(lambda: _is_ready(address), alive)
        return {"page_seconds": page_seconds, "ready_seconds": time.perf_counter() - began}


@contextmanager
def _running(command: list[str]) -> Iterator[Callable[[], None]]:
    """The program; yields a check that raises StartFailed once it has ended."""
    with tempfile.TemporaryFile("w+", errors="replace") as words:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT)

        def check_alive() -> None:
            if process.poll() is not None:
                words.seek(0)
                said = last_words(words.read())
                raise StartFailed(f"The program ended with code {process.returncode}: {said}", "See what it says.")

        try:
            yield check_alive
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(condition: Callable[[], bool], check_alive: Callable[[], None]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        check_alive()
        if time.monotonic() > until:
            raise StartFailed(f"The program was not ready after {PATIENCE_SECONDS:.0f} s.", "Start it by hand to see.")
        time.sleep(POLL_SECONDS)


def _is_ready(address: str) -> bool:
    health = json.loads(_get(f"{address}/health") or "{}")
    if health.get("failed"):
        raise StartFailed(f"The program could not load its model: {health['state']}", "Start it by hand to see more.")
    return bool(health.get("ready"))


def _get(address: str) -> bytes | None:
    """What is served there; None while nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=60) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
