"""The what-if curve: rises with the budget, is drawn between answers, and marks where more gains nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from app.ui.what_if_view import what_if_data
from app.what_if import FEWEST_TOKENS, WhatIfCurve, what_if
from engine.routing.traces.trace import RoutingTrace
from tests.app.fake_engine import FakeEngine

EXPERTS = 8
STATS = SimpleNamespace(decode_steps=100, decode_seconds=3.0, stall_seconds=1.0, misses=90, late=10, time_dilation=1.0)
NEVER_WAITED = SimpleNamespace(**vars(STATS) | {"stall_seconds": 0.0, "misses": 0, "late": 0})


def routing(tokens: int, used: int = EXPERTS) -> RoutingTrace:
    """Of two layers; tokens use the first `used` experts of each in turn."""
    experts = ((np.arange(tokens)[:, None, None] + np.arange(2)) % used).astype(np.int16).repeat(2, axis=1)
    return RoutingTrace(
        "r", np.zeros(tokens, np.int32), experts, np.zeros(experts.shape, np.float16), np.ones(tokens, bool)
    )


def test_with_too_few_tokens_there_is_no_curve():
    assert what_if(routing(FEWEST_TOKENS - 1), STATS, EXPERTS, 10) is None
    assert what_if_data(None, FakeEngine().plan, 50.0) is None


def test_hits_and_speed_rise_to_what_everything_in_memory_gives():
    curve = what_if(routing(64), STATS, EXPERTS, 13)
    assert curve is not None and curve.percent[0] == 13 and curve.percent[-1] == 100
    assert list(curve.hit_rate) == sorted(curve.hit_rate) and curve.hit_rate[-1] == 1
    assert list(curve.tokens_per_second) == sorted(curve.tokens_per_second)
    assert curve.tokens_per_second[-1] == pytest.approx(100 / 2.0)
    emulated = what_if(routing(64), SimpleNamespace(**vars(STATS) | {"time_dilation": 20.0}), EXPERTS, 13)
    assert emulated is not None and emulated.tokens_per_second[-1] == pytest.approx(20 * 100 / 2.0)


def test_more_memory_than_the_chat_uses_gains_nothing():
    curve = what_if(routing(64, used=4), STATS, EXPERTS, 13)
    assert curve is not None and 48 <= curve.enough_percent <= 55


def test_before_anything_was_missed_only_hits_are_known():
    curve = what_if(routing(64), NEVER_WAITED, EXPERTS, 13)
    assert curve is not None and curve.tokens_per_second == ()
    shown = what_if_data(curve, FakeEngine().plan, 50.0)
    assert shown["speed"] == [] and shown["speed_now"] == "" and "Speed appears" in shown["caption"]


def test_it_is_drawn_anew_after_an_answer_but_not_during_one():
    engine, curve = FakeEngine(), WhatIfCurve()
    engine.resize("25%")
    assert curve.of(engine, busy=False) is None
    for _ in range(FEWEST_TOKENS):
        engine._step()
    assert curve.of(engine, busy=True) is None
    drawn = curve.of(engine, busy=False)
    assert drawn is not None and drawn.tokens == FEWEST_TOKENS
    engine._step()
    assert curve.of(engine, busy=True) is drawn
    assert curve.of(engine, busy=False).tokens == FEWEST_TOKENS + 1


def test_marks_that_would_overlap_share_their_words():
    engine = FakeEngine()
    engine.resize("50%")
    curve = what_if(routing(64, used=4), STATS, EXPERTS, 13)
    labels = [mark["label"] for mark in what_if_data(curve, engine.plan, 100.0)["marks"]]
    assert labels == ["now, no gain beyond", "auto"] or labels == ["no gain beyond, now", "auto"]
