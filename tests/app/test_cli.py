"""Commands as a person runs them: output, exit codes, JSON on stdout and nothing else there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from engine.paths import models_dir
from tests.tiny_chat_model import tiny_chat_checkpoint
from tests.tiny_models import tiny_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("EXPERTFLOW_LINK", "disk")
    hub = tmp_path / "hub"
    hub.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    return tmp_path


def run(*arguments: object, code: int = 0, given: str | None = None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=given)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def run_json(*arguments: object, code: int = 0, given: str | None = None) -> dict:
    """Whatever was on stdout was one JSON object."""
    return json.loads(run(*arguments, "--json", code=code, given=given).stdout)


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom app.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\nassert result.exit_code == 0\n"
        "print([name for name in ('torch', 'transformers', 'gradio', 'numba', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name",
    [
        "chat",
        "doctor",
        "models",
        "models show",
        "models download",
        "bench",
        "bench decode",
        "bench peers",
        "bench model",
        "trace",
        "trace show",
    ],
)
def test_every_command_explains_itself(name):
    assert "Usage:" in run(*name.split(), "--help").output


def test_no_subcommand_serves_the_page_with_what_was_given(monkeypatch):
    served = []
    monkeypatch.setattr("app.server.run", lambda **options: served.append(options))
    run("--model", "x", "--budget", "25%", "--port", 7999, "--no-browser", "--record-routing", "--chats-at-once", 6)
    (options,) = served
    assert options["engine_options"]["model"] == "x"
    assert options["engine_options"]["budget"] == "25%"
    assert options["engine_options"]["policy"] is None
    assert (options["port"], options["open_browser"]) == (7999, False)
    assert (options["record_routing"], options["chats_at_once"]) == (True, 6)
    run()
    given = ("port", "open_browser", "record_routing", "chats_at_once")
    assert [served[1][name] for name in given] == [None] * 4


@pytest.mark.parametrize("chats", [-1, 65])
def test_chats_at_once_beyond_reason_are_told_before_anything_is_loaded(chats, monkeypatch):
    monkeypatch.setattr("app.server.listen", lambda *_: pytest.fail("It went on."))
    told = run("--chats-at-once", chats, "--no-browser", code=2).stderr
    assert "chats_at_once" in told and str(chats) in told and "command line" in told


def test_models_lists_good_and_broken():
    shutil.copytree(tiny_checkpoint("mixtral"), models_dir() / "mine")
    shutil.copytree(tiny_checkpoint("mixtral"), models_dir() / "broken")
    (models_dir() / "broken" / "model.safetensors").unlink()
    listed = run_json("models")
    mine = {model["name"]: model for model in listed["models"]}["mine"]
    for name in ("path", "architecture", "bytes", "expert_bytes", "experts_per_layer", "experts_per_token"):
        assert mine[name]
    assert [problem["name"] for problem in listed["unusable"]] == ["broken"]
    shown = run("models").output
    assert "mine" in shown
    assert "broken cannot be run" in shown


def test_deleting_asks_first():
    folder = models_dir() / "mine"
    shutil.copytree(tiny_checkpoint("mixtral"), folder)
    run("models", "delete", "mine", given="n\n", code=1)
    assert folder.exists()
    assert run_json("models", "delete", "mine", "--yes")["freed_bytes"] > 10_000
    assert not folder.exists()
    error = run_json("models", "delete", "mine", "--yes", code=2)["error"]
    assert error["kind"] == "ModelNotFound"


def test_doctor_plans_without_loading():
    found = run_json("doctor", "--model", tiny_checkpoint("mixtral"), "--budget", "50%")
    assert found["plan"]["slots"] == found["plan"]["experts_total"] // 2
    assert found["model"]["architecture"] == "MixtralForCausalLM"
    assert found["machine"]["versions"]["transformers"]
    assert found["disk"]["free_bytes"] > 0
    assert found["disk"]["speed"]["best_bytes_per_second"] > 0
    assert found["machine"]["gpu_explanation"] in found["decisions"]
    assert found["error"] is None


def test_doctor_for_people():
    shown = run("doctor", "--model", tiny_checkpoint("mixtral")).output
    assert "RAM" in shown
    assert "experts held" in shown


def test_doctor_plans_for_an_emulated_card():
    found = run_json("doctor", "--model", tiny_checkpoint("mixtral"), "--link", "emulated:4060")
    assert any("Emulation" in sentence and "RTX 4060: 8 GiB" in sentence for sentence in found["decisions"])


def test_doctor_shows_the_machine_even_when_the_model_cannot_run():
    found = run_json("doctor", "--model", "/no/where", code=2)
    assert found["machine"]["cpu"]
    assert "/no/where" in found["error"]["cause"]
    small = run("doctor", "--model", tiny_checkpoint("mixtral"), "--budget", "1KiB", code=2).output
    assert "too small" in small


def test_doctor_on_a_fresh_machine_builds_nothing():
    found = run_json("doctor")
    assert any("not built yet" in warning for warning in found["warnings"])
    assert not models_dir().exists()


def greedy(*more: object) -> tuple:
    return ("--model", tiny_chat_checkpoint(), "--temperature", 0, "--max-new-tokens", 5, "--budget", "50%", *more)


def test_prompts_from_a_file_are_answered_as_the_engine_does(home):
    chats = [[{"role": "user", "content": text}] for text in ("Hello", "What is this?")]
    file = home / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    result = run_json("chat", *greedy("--prompts", file))
    from engine import Engine

    with Engine.load(tiny_chat_checkpoint(), budget="100%") as engine:
        expected = [list(engine.chat(chat, max_new_tokens=5, temperature=0.0)) for chat in chats]
    for answer, events in zip(result["answers"], expected, strict=True):
        assert answer["text"] == "".join(event.text for event in events)
        assert answer["token_ids"] == [event.token_id for event in events]
        assert answer["finish_reason"] == events[-1].finish_reason
        assert answer["stats"]["tokens"] == len(events)
    assert result["plan"]["budget"] == "50%"
    spoken = run("chat", *greedy("--prompts", file)).stdout
    assert all(answer["text"] in spoken for answer in result["answers"])


def test_piped_lines_are_one_chat():
    one = run_json("chat", *greedy(), given="Hello\nAnd then?\n")
    assert len(one["answers"]) == 2
    apart = run_json("chat", *greedy("--prompts", "-"), given='{"messages": [{"role": "user", "content": "Hello"}]}\n')
    assert apart["answers"][0]["token_ids"] == one["answers"][0]["token_ids"]
    spoken = run("chat", *greedy(), given="Hello\n/budget 100%\n/quit\n").stdout
    assert one["answers"][0]["text"] in spoken
    assert "Memory in use" in spoken


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("--model", "no-such-model"), "ModelNotFound"),
        (("--budget", "lots"), "InvalidSetting"),
        (("--budget", "1KiB"), "BudgetTooSmall"),
        (("--policy", "random"), "InvalidSetting"),
        (("--link", "wire"), "InvalidSetting"),
        (("--top-p", "7"), "InvalidSetting"),
        (("--prompts", "/no/such/file"), "InvalidSetting"),
        (("--context-length", "1000000"), "InvalidSetting"),
    ],
)
def test_bad_input_is_a_typed_error_and_exit_code_2(arguments, kind):
    given = ("chat", "--model", tiny_chat_checkpoint(), *arguments)
    error = run_json(*given, code=2, given="Hello\n")["error"]
    assert error["kind"] == kind
    said = run(*given, code=2, given="Hello\n")
    assert error["cause"] in said.stderr
    assert error["remedy"] in said.stderr


def test_nothing_to_answer_is_said():
    error = run_json("chat", "--model", tiny_chat_checkpoint(), code=2, given="")["error"]
    assert "nothing to answer" in error["cause"]


def test_a_bad_line_of_prompts_is_named_by_bench(home):
    file = home / "prompts.jsonl"
    file.write_text('{"messages": []}\n')
    for bench in ("decode", "peers"):
        error = run_json("bench", bench, "--prompts", file, code=2)["error"]
        assert "Line 1" in error["cause"]


@pytest.mark.parametrize(
    ("options", "shares", "stalls", "real"),
    [
        ((), 5, 5, 5),
        (("--no-real",), 5, 5, 0),
        (("--budget", "25%,45%", "--waiting", "50%"), 2, 1, 2),
        (("--waiting", "90%"), 5, 1, 5),
    ],
)
def test_which_cells_of_prediction_are_measured(monkeypatch, options, shares, stalls, real):
    asked = []
    monkeypatch.setattr(
        "engine.lab.bench_prediction.run_bench_prediction",
        lambda settings, on_progress: asked.append(settings) or {"runs": [], "cells": [], "ratios": {}},
    )
    run_json("bench", "prediction", *options)
    (settings,) = asked
    assert (len(settings.shares), len(settings.stalls), len(settings.cells)) == (shares, stalls, real)
    assert all(share in settings.shares and stall in settings.stalls for share, stall in settings.cells)


def test_ctrl_c_ends_with_one_line_and_130():
    process = start("doctor", "--model", tiny_checkpoint("mixtral"))
    assert "Looking at the machine" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert output == ""
    assert errors.splitlines()[-1] == "Stopped."
    assert "Traceback" not in errors
