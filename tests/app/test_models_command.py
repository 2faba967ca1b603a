"""`models show` and `models download` as a person runs them, against a hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from engine.checkpoint.dense_model import open_checkpoint
from engine.checkpoint.quantised import ensure_quantised, plan_quantised
from tests.tiny_models import tiny_checkpoint

NAME = "org/moe"
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def theirs(hub, tmp_path, monkeypatch) -> Path:
    """The hub has one model, with a card."""
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path / "home"))
    folder = tmp_path / "theirs"
    shutil.copytree(tiny_checkpoint("mixtral"), folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A small mixture")
    hub.add(NAME, folder)
    return folder


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["models", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def run_json(*arguments: str, code: int = 0) -> dict:
    result = CliRunner().invoke(app, ["models", *arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_a_model_is_shown_before_it_is_downloaded(hub):
    words = run("show", NAME)
    assert "MixtralForCausalLM" in words
    assert "not yet; the download is" in words
    assert "It fits whole" in words
    assert "all parameters" in words
    assert "A small mixture" in words
    assert f"models download {NAME}" in words
    assert hub.downloads(WEIGHTS) == 2  # the header: once to be redirected, once read


def test_the_same_in_json_with_the_plan():
    shown = run_json("show", NAME, "--budget", "50%")
    assert (shown["name"], shown["is_here"], shown["from_headers"]) == (NAME, False, True)
    assert shown["total_parameters"] > shown["active_parameters"]
    assert shown["plan"]["slots"] == shown["plan"]["experts_total"] // 2
    assert shown["download_bytes"] > shown["bytes"] > 0
    assert shown["error"] is None


def test_fewer_bits_fewer_bytes():
    native, packed = run_json("show", NAME), run_json("show", NAME, "--precision", "nf4")
    assert packed["plan"]["slot_bytes"] <= native["plan"]["slot_bytes"]
    assert "no precision called" in run_json("show", NAME, "--precision", "int3", code=2)["error"]["cause"]


def test_a_budget_that_cannot_do_is_told_with_the_one_that_would():
    shown = run_json("show", NAME, "--budget", "1MiB", code=2)
    assert "too small" in shown["error"]["cause"]
    assert "MiB or more" in shown["error"]["remedy"]
    assert "MixtralForCausalLM" in run("show", NAME, "--budget", "1MiB", code=2)


def test_a_downloaded_model_is_listed_shown_and_needs_no_hub_any_more(hub, monkeypatch):
    assert f"{NAME} is on this machine" in run("download", NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    asked = sum(hub.requests.values())
    assert [model["name"] for model in run_json()["models"]] == ["demo", NAME]
    assert run_json("show", NAME)["is_here"]
    assert run_json("download", NAME)["download_bytes"] == 0
    assert sum(hub.requests.values()) == asked


def test_what_cannot_be_run_is_not_downloaded(hub, theirs):
    config = json.loads((theirs / "config.json").read_text()) | {"model_type": "never_heard_of"}
    (theirs / "config.json").write_text(json.dumps(config))
    hub.add(NAME, theirs)
    failed = run_json("download", NAME, code=2)
    assert failed["error"]["kind"] == "UnsupportedModel"
    assert hub.downloads(WEIGHTS) == 0


def test_errors_name_their_remedy(hub):
    assert "Check the spelling" in run("show", "org/absent", code=2)
    hub.repositories[NAME].gated = True
    assert "Accept them at" in run("download", NAME, code=2)


def test_without_the_hub_the_config_seen_earlier_has_to_do(monkeypatch):
    run("show", NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    shown = run_json("show", NAME)
    assert (shown["from_headers"], shown["is_here"]) == (False, False)
    assert shown["plan"]["experts_total"] > 0
    assert "cannot be reached" in run("show", "org/other", code=2)


def test_the_built_in_model_is_not_asked_for_on_the_hub(hub):
    assert "not built yet" in run("show", "demo", code=2)
    assert not hub.requests


def test_ctrl_c_ends_a_download_and_the_next_one_goes_on(hub, tmp_path):
    hub.hold = threading.Event()

    def interrupt() -> None:
        hub.held.wait(60)
        os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(1.0, hub.hold.set).start()

    threading.Thread(target=interrupt).start()
    assert "Stopped." in run("download", NAME, code=130)
    weights = hub.repositories[NAME].files[WEIGHTS].sha256
    (partial,) = [path for path in (tmp_path / "hub").rglob("*.incomplete") if path.stem == weights]
    hub.hold = None
    had = partial.stat().st_size
    hub.ranges.clear()
    run("download", NAME)
    assert f"bytes={had}-" in hub.ranges


def test_quantised_copies_are_listed_and_deleted(theirs):
    index = ensure_quantised(plan_quantised(open_checkpoint(theirs), "int8"))
    assert f"{index.folder.name}: experts of {theirs} as int8" in run()
    (copy,) = run_json()["quantised"]
    assert (copy["name"], copy["precision"], copy["source"]) == (index.folder.name, "int8", str(theirs))
    assert run_json("delete", copy["name"], "--yes")["freed_bytes"] >= copy["bytes"]
    assert run_json()["quantised"] == []
