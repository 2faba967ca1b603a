"""Loading beside the page: progress, failure in words, another try, an early end."""

import threading

import pytest

from app.engine_host import EngineHost, LoadFailed
from engine.errors import BudgetTooSmall
from tests.app.fake_engine import FakeEngine


def test_progress_and_readiness_are_told():
    shown, go_on = threading.Event(), threading.Event()

    def load(on_progress, **options):
        on_progress("Building the built-in model", 9, 20)
        shown.set()
        go_on.wait(10)
        return FakeEngine()

    host = EngineHost({"model": "demo"}, load)
    host.start()
    assert shown.wait(10)
    assert host.state.words == "Building the built-in model, 45 %"
    assert host.engine is None
    assert host.wait(0.01) is None
    go_on.set()
    assert host.wait(10) is host.engine
    assert host.state.ready
    host.close()


def test_a_failure_is_kept_and_another_try_with_other_options_may_work():
    def load(on_progress, budget, **options):
        if budget == "1":
            raise BudgetTooSmall("1 byte is too little.", "Give 3 GB.", 3)
        return FakeEngine()

    host = EngineHost({"budget": "1"}, load)
    host.start()
    with pytest.raises(BudgetTooSmall):
        host.wait(10)
    assert host.state.words == "1 byte is too little."
    host.start(budget="auto")
    assert host.wait(10) is not None
    host.close()


def test_an_unforeseen_error_becomes_words():
    def load(on_progress, **options):
        raise KeyError("weights")

    host = EngineHost({}, load)
    host.start()
    with pytest.raises(LoadFailed) as caught:
        host.wait(10)
    assert "KeyError" in caught.value.cause
    assert caught.value.remedy


def test_closing_while_loading_closes_the_engine_that_comes():
    go_on, engine = threading.Event(), FakeEngine()

    def load(on_progress, **options):
        go_on.wait(10)
        return engine

    host = EngineHost({}, load)
    host.start()
    host.close()
    go_on.set()
    host._thread.join(10)
    assert engine.closed
    assert host.engine is None
