"""Learning on from the predictor in force: judged on chats that neither knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.errors import InvalidSetting
from engine.routing.predictor_files import SHIPPED_DIR, learnt_dir, own_dir, predictor_files
from engine.routing.predictors.recurrent_network import RecurrentSizes
from engine.routing.predictors.registry import predictor_of
from engine.routing.predictors.token_table import fit_token_table
from engine.routing.predictors.weights_file import read_predictor
from engine.routing.scoring.evaluation import evaluate
from engine.routing.traces.trace_set import TraceSet, read_traces
from engine.routing.traces.trace_store import TraceStore
from engine.routing.training.learning_on import LearntOn, learn_on
from engine.routing.training.predictor_training import PredictorTraining, make_network, train_predictor
from engine.routing.training.split import part_of, split_by_conversation
from engine.routing.training.train import TrainingSettings
from tests.routing.synthetic import SHAPE, WIDTH, conversations, elsewhere, write_traces

SIZES = RecurrentSizes(horizon=2, token_width=8, state_width=16, head_width=16)
SETTINGS = TrainingSettings(steps=20, batch=8, window=16, rate=1e-2, measure_every=20)
TRAINING = PredictorTraining(sizes=SIZES, settings=SETTINGS)
CHATS = tuple(conversations(120, 24))


def recorded(chats=CHATS) -> TraceSet:
    return TraceSet("model one", SHAPE, tuple(chats))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A predictor that learnt in another world."""
    out = tmp_path_factory.mktemp("stranger") / "p.safetensors"
    train_predictor(recorded(elsewhere(CHATS)), out, TRAINING)
    return read_predictor(out)


def test_a_first_predictor_has_to_beat_guessing(tmp_path):
    out = tmp_path / "p.safetensors"
    found = learn_on(recorded(), out, TRAINING)
    split = split_by_conversation(CHATS)
    table = fit_token_table(SHAPE, split.train)
    assert found.recall_before == evaluate(table, split.test).rows[0].recall(SHAPE.top_k) > 0.3
    assert found.judged_tokens == sum(int(trace.decoded.sum()) for trace in split.test)
    assert found.conversations == sum(part_of(trace.conversation) == "train" for trace in CHATS)
    assert found.tokens == 24 * found.conversations and out.exists()


def test_learning_on_is_measured_against_what_is_in_force(stranger, tmp_path):
    on = replace(TRAINING, start=stranger, settings=replace(SETTINGS, steps=60))
    found = learn_on(recorded(), tmp_path / "p.safetensors", on)
    known = evaluate(predictor_of(stranger), split_by_conversation(CHATS).test).rows[0].recall(SHAPE.top_k)
    assert found.recall_before == known < found.recall_after - 0.05 and found.better


def test_as_good_is_not_better():
    assert not LearntOn(1, 1, 1, 0.5, 0.5).better


def test_too_little_to_judge_by_is_said_before_anything_is_computed(tmp_path):
    unanswered = [replace(trace, decoded=np.zeros(len(trace), bool)) for trace in CHATS]
    with pytest.raises(InvalidSetting, match="hold 0 tokens of answers"):
        learn_on(recorded(unanswered), tmp_path / "p", TRAINING)
    assert not list(tmp_path.iterdir())


def test_a_network_that_has_learnt_takes_chats_with_and_without_hidden_states(stranger):
    """Recording may have been without them first."""
    mixed = [replace(trace, hidden=None) if number % 2 else trace for number, trace in enumerate(CHATS)]
    on = replace(TRAINING, start=stranger)
    network = make_network(recorded(mixed), split_by_conversation(mixed), on)
    assert network.hidden_width == WIDTH
    assert float(network.hidden_scale.std()) > 0  # type: ignore[union-attr,operator]


def test_what_was_learnt_goes_before_what_was_put_there_before_what_was_shipped(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path))
    assert [file.parent for file in predictor_files("m")] == [learnt_dir(), own_dir(), SHIPPED_DIR]
    assert {file.name for file in predictor_files("m")} == {"m.safetensors"}


def test_a_mark_parts_what_is_recorded_from_what_comes_later(tmp_path):
    file = write_traces(tmp_path / "t.sqlite", CHATS[:3])
    with TraceStore(file, TraceStore(file).model) as store:
        mark = store.mark()
        assert store.tokens_by_conversation() == {trace.conversation: 24 for trace in CHATS[:3]}
        store.append(24, CHATS[0])  # the first one goes on
        store.append(0, CHATS[3])
        later = {CHATS[0].conversation: 24, CHATS[3].conversation: 24}
        assert store.tokens_by_conversation(mark) == later and store.mark() > mark
    assert [len(trace) for trace in read_traces([file], mark).traces] == [24, 24, 24]
    assert [len(trace) for trace in read_traces([file]).traces] == [48, 24, 24, 24]
    with TraceStore(file) as store:
        store.forget()
        assert (store.mark(), store.tokens_by_conversation()) == (0, {})
