"""`simulate`, as a person runs it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.cache.policy_choice import PLAIN_POLICIES
from engine.hardware.gpu_profiles import profile_named
from engine.routing.traces.trace_store import TraceStore
from engine.routing.traces.traced_model import TracedModel
from tests.app.test_cli import home, run, run_json  # noqa: F401 - home is a fixture
from tests.routing.traces import MODEL, made_up
from tests.tiny_chat_model import tiny_chat_checkpoint


@pytest.fixture
def recorded(tmp_path):
    """Four conversations of a model with the shape of the tiny chat model."""
    path = tmp_path / "traces.sqlite"
    with TraceStore(path, MODEL) as store:
        for number in range(4):
            store.append(0, made_up(60, seed=number, conversation=str(number)))
    return path


def simulate(recorded, *more: object):
    return ("simulate", "--traces", recorded, "--model", tiny_chat_checkpoint(), "--token-ms", 1, *more)


def test_every_policy_budget_and_link_is_a_run(recorded):
    links = "emulated:0.05GBps,stall:50%"
    report = run_json(*simulate(recorded, "--budget", "25%,50%", "--link", links))
    assert len(report["runs"]) == 2 * 2 * 7
    by_name = {(run["budget"], run["link"], run["policy"]): run for run in report["runs"]}
    for budget in ("25%", "50%"):
        plain = [by_name[budget, "stall:50%", policy] for policy in PLAIN_POLICIES]
        assert min(run["stall_share"] for run in plain) == pytest.approx(0.5, abs=0.01)
        assert by_name[budget, "stall:50%", "clairvoyant"]["stall_share"] < 0.5
        assert by_name[budget, "stall:50%", "belady"]["hit_rate"] > max(run["hit_rate"] for run in plain)
    curve = report["lru_curve"]["lru"]
    assert len(curve) == MODEL.shape.outputs + 1 and curve == sorted(curve)


def test_a_card_stands_for_pace_and_link(recorded):
    given = ("simulate", "--traces", recorded, "--model", tiny_chat_checkpoint(), "--budget", "50%")
    report = run_json(*given, "--gpu", "4060", "--policies", "lru,lfu")
    card = profile_named("4060")
    assert report["settings"]["emulated"] == "emulated RTX 4060"
    for found in report["runs"]:
        assert found["link_bytes_per_second"] == pytest.approx(card.link_bytes_per_second, rel=1e-3)
    shown = run(*given, "--gpu", "rtx 4060", "--policies", "lru").stdout
    assert "emulated RTX 4060" in shown and "least time" in shown


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "How long a token takes is not known"),
        (("--gpu", "4060", "--token-ms", 3), "stands for"),
        (("--gpu", "4060", "--link", "emulated:1GBps"), "stands for"),
        (("--gpu", "pony"), "RTX 3060"),
    ],
)
def test_a_pace_that_is_not_known_is_asked_for(recorded, more, words):
    assert words in run("simulate", "--traces", recorded, "--model", tiny_chat_checkpoint(), *more, code=2).stderr


def test_the_table_says_that_it_is_simulated(recorded):
    shown = run(*simulate(recorded, "--budget", "50%", "--policies", "lru", "--take", 3)).stdout
    assert "lru" in shown and "Simulated" in shown


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--budget", "lots"), "is not a share"),
        (("--link", "emulated:fast"), "is not an emulated link"),
        (("--policies", "best"), "no policy called"),
    ],
)
def test_what_cannot_be_simulated_is_said(recorded, more, words):
    assert words in run(*simulate(recorded, *more), code=2).stderr


def test_traces_of_another_model_are_refused(tmp_path):
    path = tmp_path / "other.sqlite"
    with TraceStore(path, TracedModel("other", "f00d", replace(MODEL.shape, experts=300))) as store:
        store.append(0, made_up(20))
    assert "recorded with another model" in run(*simulate(path), code=2).stderr


def test_one_conversation_is_too_few(tmp_path):
    path = tmp_path / "one.sqlite"
    with TraceStore(path, MODEL) as store:
        store.append(0, made_up(20))
    assert "too few" in run(*simulate(path), code=2).stderr
