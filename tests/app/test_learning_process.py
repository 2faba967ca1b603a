"""The real process: learns, rests, is left and goes on; what it says is understood."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager

import psutil
import pytest

from app.learning.child import job
from app.learning.process import LearningProcess
from engine.routing.predictor_files import own_dir
from engine.routing.predictors.recurrent_network import RecurrentSizes
from engine.routing.predictors.weights_file import read_predictor
from engine.routing.traces.trace_set import TraceSet
from engine.routing.traces.trace_store import TraceStore
from engine.routing.training.predictor_training import PredictorTraining, train_predictor
from engine.routing.training.train import TrainingSettings
from tests.routing.synthetic import SHAPE, conversations, elsewhere, write_traces

pytestmark = pytest.mark.timeout(1800)

PATIENCE_SECONDS = 600.0  # what learns has the lowest priority: beside other tests it takes its time
MINUTES = 0.06
SIZES = RecurrentSizes(horizon=2, token_width=8, state_width=16, head_width=16)
BRIEFLY = PredictorTraining(sizes=SIZES, settings=TrainingSettings(steps=4, batch=4, window=16, measure_every=4))


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A file of recorded chats, and a predictor in force that learnt in another world."""
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path))
    chats = conversations(120, 24)
    own_dir().mkdir(parents=True)
    others = TraceSet("model one", SHAPE, elsewhere(chats))
    train_predictor(others, own_dir() / "model one.safetensors", BRIEFLY)
    return write_traces(tmp_path / "t.sqlite", chats)


def until(happened, process):
    waiting = threading.Event()
    for _ in range(int(PATIENCE_SECONDS / 0.05)):
        if happened():
            return
        assert process.alive or happened(), process.problem
        waiting.wait(0.05)
    raise AssertionError("it took too long")


@contextmanager
def learning(traces, mark, out):
    """The process, killed in the end."""
    process = LearningProcess(job(traces, mark, out, MINUTES), out.parent)
    try:
        yield process
    finally:
        process.kill()


def test_it_learns_rests_is_left_is_killed_and_goes_on(recorded, tmp_path):
    out = tmp_path / "candidate.safetensors"
    with TraceStore(recorded) as store:
        mark = store.mark()
    with learning(recorded, mark, out) as process:
        child = psutil.Process(process.pid)
        until(lambda: process.done > 0, process)
        assert child.nice() == (psutil.IDLE_PRIORITY_CLASS if os.name == "nt" else 19)
        assert process.cpu_seconds() > 0
        process.suspend()
        until(lambda: child.status() == psutil.STATUS_STOPPED, process)
        process.leave()
        assert not process.alive and process.learnt is None
    checkpoint = tmp_path / "candidate.safetensors.checkpoint"
    left_at, saved = process.done, checkpoint.read_bytes()

    with learning(recorded, mark, out) as process:
        until(lambda: process.done > 0, process)
    assert process.done > left_at  # it did not begin anew
    assert [path.name for path in tmp_path.glob("candidate*")] == [checkpoint.name]
    assert checkpoint.read_bytes() == saved

    with TraceStore(recorded, TraceStore(recorded).model) as store:
        store.append(0, conversations(1, 24, seed=9)[0])  # recorded since: not for this run
    with learning(recorded, mark, out) as process:
        until(lambda: not process.alive, process)
    assert process.learnt is not None, process.problem
    assert process.learnt["recall_after"] > process.learnt["recall_before"] > 0
    assert read_predictor(out, "model one").history["conversations"]["train"] == process.learnt["conversations"]
    assert not checkpoint.exists()


def test_what_cannot_be_learnt_from_is_said_in_words(tmp_path):
    with learning(tmp_path / "no.sqlite", 0, tmp_path / "candidate.safetensors") as process:
        until(lambda: not process.alive, process)
    assert process.learnt is None and "no such file" in process.refused["cause"]
