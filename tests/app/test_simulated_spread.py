"""`bench batch --simulate --nodes`: routes against taking turns, with the very feed of a job over several engines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.batch.nodes.feed import SAMPLE_LINES, feed_sizes
from app.batch.nodes.simulated_spread import SpreadSettings, simulate_spread
from engine.errors import InvalidSetting
from engine.routing.predictor_files import own_dir
from engine.routing.predictors.baselines import NoPrediction
from engine.routing.predictors.recurrent import export
from engine.routing.predictors.recurrent_network import RecurrentNetwork, RecurrentSizes
from engine.routing.predictors.weights_file import write_predictor
from engine.routing.traces.trace_store import TraceStore
from tests.app.test_cli import home, run, run_json  # noqa: F401 - home is a fixture
from tests.lab.test_simulation import EXPERT_BYTES, LAYERS, SHAPE, TOP_K, make_trace
from tests.routing.traces import MODEL, made_up
from tests.tiny_chat_model import tiny_chat_checkpoint

PROMPT, TOKENS = 4, 12


class ByFirstToken(NoPrediction):
    """A prompt's first token names its topic, and a topic's experts are known."""

    def begin(self):
        self._topic = None

    def predict(self, token_id):
        self._topic = token_id if self._topic is None else self._topic
        expected = self._empty()
        expected[0, :, 3 * self._topic : 3 * self._topic + 3] = 0.9
        return expected


def topics(count: int) -> list:
    """Answers of two topics with experts of their own; neither turns nor neighbours keep them apart."""
    made = []
    for number in range(count):
        trace = make_trace(TOKENS, number, PROMPT)
        topic = (0, 1, 1, 0)[number % 4]
        trace.token_ids[:] = topic
        trace.experts[:] = (
            3 * topic + np.random.default_rng(number).random((TOKENS, LAYERS, 3)).argsort(-1)[..., :TOP_K]
        )
        made.append(trace)
    return made


def report_of(predictor, orders):
    settings = SpreadSettings((2,), (2,), (0.5,), orders=orders)
    return simulate_spread(topics(16), SHAPE, EXPERT_BYTES, predictor, settings, lambda *_: None)


def test_where_topics_have_experts_of_their_own_routes_win():
    report = report_of(ByFirstToken(SHAPE, 1), orders=3)
    assert report["ratios"]["2_2_50%_lru-per-layer_routes_most"] < 0.5
    by_spread = {one["spread"]: one for one in report["runs"] if one["order"] == 0}
    assert by_spread["routes"]["hit_rate"] > by_spread["round-robin"]["hit_rate"]
    assert {one["order"] for one in report["runs"]} == {0, 1, 2} and len(report["runs"]) == 9
    for one in report["runs"]:
        assert one["tokens"] == 16 * (TOKENS - PROMPT) == sum(node["tokens"] for node in one["by_node"])
        moved = sum(node["bytes_per_token"] * node["tokens"] for node in one["by_node"])
        assert one["bytes_per_token"] * one["tokens"] == pytest.approx(moved)
        assert len(one["by_node"]) == one["nodes"] == 2 and one["answers"] == 16


def test_a_predictor_that_knows_nothing_wins_nothing():
    """All prompts look alike, so that ties place them; what answers really use still wins."""
    ratios = report_of(NoPrediction(SHAPE, 1), orders=3)["ratios"]
    assert ratios["2_2_50%_lru-per-layer_routes"] > 0.7 > ratios["2_2_50%_lru-per-layer_true-routes"]


def test_too_little_is_told():
    settings = SpreadSettings(nodes=(9,))
    with pytest.raises(InvalidSetting, match="too few for 9 nodes"):
        simulate_spread(topics(16), SHAPE, 1, NoPrediction(SHAPE, 1), settings, lambda *_: None)


def test_sizes_are_those_of_a_job():
    assert feed_sizes(1000, 2, 8) == (32, SAMPLE_LINES)
    assert feed_sizes(60, 4, 8) == (8, SAMPLE_LINES)
    assert feed_sizes(10_000, 8, 16) == (64, 4 * 8 * 64)
    assert feed_sizes(24, 4, 8) == (6, SAMPLE_LINES)  # nobody is left without


def test_as_a_person_runs_it(home, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "traces.sqlite"
    with TraceStore(path, MODEL) as store:
        for number in range(6):
            trace = made_up(20, seed=number, conversation=str(number))
            store.append(0, replace(trace, decoded=np.arange(20) >= 8))
    asked = ("bench", "batch", "--simulate", "--all", "--traces", path, "--model", tiny_chat_checkpoint())
    asked += ("--sizes", "2", "--budget", "25%,50%", "--nodes", "2,3")
    assert "No predictor" in run_json(*asked, code=2)["error"]["cause"]

    sizes = RecurrentSizes(hidden_width=0, token_width=8, state_width=8, head_width=8)
    network = RecurrentNetwork(MODEL.shape, sizes).eval()
    own_dir().mkdir(parents=True)
    blend = np.array([[1.0, 0.0]] * 3)
    write_predictor(own_dir() / f"{MODEL.fingerprint}.safetensors", export(network, blend, MODEL.fingerprint))
    report = run_json(*asked)
    assert {(one["nodes"], one["budget"]) for one in report["runs"]} == {(n, b) for n in (2, 3) for b in ("25%", "50%")}
    assert report["conversations"] == 6 and report["machine"] and "2_2_25%_lru-per-layer_routes" in report["ratios"]
    shown = run(*asked).stdout
    assert "round-robin" in shown and "true-routes" in shown
    assert "cannot be replayed" in run(*asked, "--policy", "predictive", code=2).stderr


@pytest.mark.parametrize(
    ("given", "words"), [(("--nodes", "2"), "--simulate"), (("--simulate", "--nodes", "two"), "two")]
)
def test_what_makes_no_sense_is_told(given, words):
    assert words in run("bench", "batch", *given, code=2).output
