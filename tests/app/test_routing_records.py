"""Routing of the person's own chats: off until asked for, live, kept for the next start, forgotten for good."""

from __future__ import annotations

import json

import numpy as np
import pytest

from app.program import Program
from app.routing_records import RoutingRecords, recorded, recorded_files, records_dir
from app.settings import load_settings, save_changes
from app.ui.routing_records import explanation, state_words
from engine import Engine
from engine.errors import UnsupportedModel
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_store import TraceStore
from tests.app.fake_engine import EXPERTS, LAYERS, TOP_K, FakeEngine
from tests.engine.stepwise import stepwise
from tests.tiny_chat_model import tiny_chat_checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("EXPERTFLOW_LINK", "disk")
    return tmp_path


@pytest.fixture
def program():
    programs = []

    def start(load=FakeEngine.load):
        program = Program(load_settings(), load)
        program.start()
        program.host.wait(120)
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.close()


def answer(program, text="Hello"):
    store = program.store
    chat_id = store.create_chat()
    store.add_user_message(chat_id, text)
    greedy = {"max_new_tokens": 5, "temperature": 0.0}  # a drawn answer may end at once
    program.answers.start(chat_id, program.preferences.sampling.model_copy(update=greedy))
    program.answers.wait(chat_id, 60)


def load_tiny(on_progress=None, on_plan=None, **options):
    return Engine.load(tiny_chat_checkpoint(), budget="50%", on_progress=on_progress)


def test_nothing_is_recorded_until_asked_for(program):
    started = program()
    assert started.host.engine.store is None
    assert (started.routing.on, recorded_files(), started.warnings) == (False, [], [])
    assert state_words(started.routing) == "Nothing is recorded."


def test_the_switch_acts_at_once_and_is_there_after_a_restart(program):
    started = program()
    started.routing.switch(True)
    assert started.host.engine.store.path.parent == records_dir()
    assert started.host.engine.store.path.name == "demo-01234567.sqlite"
    assert program().routing.on
    started.routing.switch(False)
    assert started.host.engine.store is None
    assert not program().routing.on


def test_chats_are_recorded_live_and_forgotten_on_request(program):
    started = program(load_tiny)
    answer(started, "Before")
    started.routing.switch(True)
    answer(started, "My secret")
    answer(started, "Another")
    started.host.engine.wait_recorded()
    (summary,) = recorded()
    assert summary.conversations == 2
    assert f"{summary.tokens:,} tokens of 2 conversations" in state_words(started.routing)

    started.routing.forget()
    assert recorded()[0].tokens == 0
    assert state_words(started.routing) == "Recording begins with the next token."
    answer(started, "Once more")
    started.close()
    with TraceStore(recorded_files()[0]) as store:
        (trace,) = store.traces()
    assert trace.decoded.sum() == 4
    tokenizer = load_tokenizer()
    assert "more" in tokenizer.decode(trace.token_ids) and "secret" not in tokenizer.decode(trace.token_ids)


def load_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_chat_checkpoint())


def test_forgetting_in_mid_answer_forgets_what_is_not_yet_written_too(program):
    started = program(load_tiny)
    started.routing.switch(True)
    engine = started.host.engine
    events = stepwise(engine, engine.encode([{"role": "user", "content": "My secret"}]), 9)
    for _ in range(3):
        next(events)
    started.routing.forget()
    list(events)
    engine.wait_recorded()
    (summary,) = recorded()
    assert 0 < summary.tokens < 9
    assert started.warnings == []


def test_what_cannot_be_written_is_a_warning_and_the_chat_goes_on(program, home):
    (home / "data").mkdir()
    (home / "data" / "routing").write_text("a file where the folder should be")
    save_changes({"record_routing": True})
    started = program(load_tiny)
    (warning,) = started.warnings
    assert warning.startswith("Routing is not recorded.") and "routing" in warning
    answer(started)
    assert started.store.messages(started.store.chats()[0].id)[-1].finish_reason in ("stop", "length")


def test_a_disk_that_fails_later_is_a_warning_too(program):
    started = program()
    started.routing.switch(True)
    started.host.engine.recording_problem = "Recording of routing stopped: the disk is full."
    assert started.warnings == ["Recording of routing stopped: the disk is full."]
    started.routing.switch(False)
    assert started.warnings == []


def test_hidden_states_are_recorded_for_learning_alone(program):
    started = program(load_tiny)
    started.learning.switch_recording(True)
    answer(started, "Before")
    started.learning.switch(True)
    answer(started, "Something else altogether, and much longer than that")
    started.host.engine.wait_recorded()
    with TraceStore(recorded_files()[0]) as store:
        first, second = store.traces()
    assert first.hidden is None
    assert second.hidden.shape == (len(second), started.host.engine._model.config.hidden_size)
    assert second.midway is None and second.ahead is None


def test_a_model_that_gives_no_hidden_states_is_recorded_without(program):
    started = program()
    record_to, asked = started.host.engine.record_to, []

    def refuse(store, hidden=False, **options):
        asked.append(hidden)
        if hidden:
            raise UnsupportedModel("It has no norm.", "Record without hidden states.")
        record_to(store)

    started.host.engine.record_to = refuse
    started.routing.switch(True)
    started.routing.switch_hidden(True)
    assert asked[-2:] == [True, False]
    assert started.host.engine.store is not None and started.warnings == []


def test_the_model_is_busy_while_an_answer_is_written_or_nothing_is_loaded(program):
    started = program()
    assert not started._is_busy()
    asked = iter(started.host.engine.submit([{"role": "user", "content": "hi"}]))
    assert started._is_busy()
    assert list(asked) and not started._is_busy()
    started.host._engine = None
    assert started._is_busy()


def test_the_limit_is_a_setting(program):
    save_changes({"routing_limit_megabytes": 3, "record_routing": True})
    started = program()
    assert started.host.engine.store._limit_bytes == 3_000_000
    assert "at most 3 MB" in explanation(started.routing)


def test_the_explanation_says_what_where_and_how_to_forget():
    words = explanation(RoutingRecords(load_settings()))
    for part in ("what they say", str(records_dir()), "256 MB", "leaves this machine", "deletes all"):
        assert part in words


def test_forgetting_reaches_every_models_file(program):
    started = program()
    for name in ("one", "two"):
        with TraceStore(records_dir() / f"{name}.sqlite", started.host.engine.traced_model) as store:
            store.append(0, rows_of(name))
    started.routing.forget()
    assert [summary.tokens for summary in recorded()] == [0, 0]


def rows_of(conversation):
    shape = (6, LAYERS, TOP_K)
    experts = np.random.default_rng(0).integers(0, EXPERTS, shape).astype(np.int16)
    weights, decoded = np.zeros(shape, np.float16), np.zeros(6, bool)
    return RoutingTrace(conversation, np.arange(6, dtype=np.int32), experts, weights, decoded)


def test_the_page_has_the_switch_and_the_button(program):
    """As the browser is told: off, with the explanation and what the button does."""
    from starlette.testclient import TestClient

    from app.server import build_app

    with TestClient(build_app(program()), base_url="http://127.0.0.1") as client:
        config = client.get("/config").json()
    parts = {part["props"].get("elem_id"): part["props"] for part in config["components"]}
    assert parts["record-routing"]["label"] == "Record the routing of my chats"
    assert not parts["record-routing"]["value"]
    assert parts["learn-from-chats"]["label"] == "Learn from my chats while nothing is asked"
    assert not parts["learn-from-chats"]["value"]
    assert parts["forget-routing"]["value"] == "Forget what was recorded and learnt"
    assert "records-state" in json.dumps(config)
