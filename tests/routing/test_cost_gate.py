"""The cost gate: finds out which mode is faster, stays there, and goes on asking."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.routing.cost_gate import FIRST_SPELL, LEAST_WAITING, LONGEST_SPELL, PROBE, CostGate


def decode(gate: CostGate, tokens: int, with_it: float, without: float, waiting: float = 0.5, noise: float = 0.0):
    """Share of the tokens decoded with prediction, where it takes `with_it` seconds and else `without`."""
    chance, on = random.Random(0), 0
    for _ in range(tokens):
        on += gate.on
        seconds = (with_it if gate.on else without) * (1 + noise * chance.uniform(-1, 1))
        gate.step_ended(seconds, waiting * seconds)
    return on / tokens


def test_where_it_pays_it_is_on_but_for_a_few_tokens():
    gate = CostGate()
    assert decode(gate, 1000, with_it=1.0, without=1.5) > 0.9
    assert gate.gain == pytest.approx(0.5, abs=0.03)
    assert gate.pays


def test_where_it_costs_it_is_off_but_for_a_few_tokens():
    gate = CostGate()
    decode(gate, 1500, with_it=1.05, without=1.0)
    assert decode(gate, 1000, with_it=1.05, without=1.0) < 0.12
    assert gate.gain == pytest.approx(-1 / 21, abs=0.02)
    assert gate.pays is False


def test_where_nothing_is_waited_for_nothing_can_be_won_and_nobody_asks_again():
    gate = CostGate()
    decode(gate, FIRST_SPELL + PROBE, with_it=0.99, without=1.0, waiting=LEAST_WAITING / 2)
    assert decode(gate, 1000, with_it=0.99, without=1.0, waiting=LEAST_WAITING / 2) == 0
    decode(gate, 1000, with_it=1.0, without=1.5)
    assert gate.pays


def test_a_clear_answer_is_not_asked_for_again_soon():
    gate = CostGate()
    decode(gate, FIRST_SPELL + PROBE, with_it=1.0, without=1.5)
    assert decode(gate, LONGEST_SPELL, with_it=1.0, without=1.5) == 1
    assert decode(gate, PROBE, with_it=1.0, without=1.5) == 0


def test_it_notices_when_things_change():
    gate = CostGate()
    decode(gate, 500, with_it=1.0, without=1.5)
    decode(gate, 1000, with_it=1.5, without=1.0)
    assert decode(gate, 500, with_it=1.5, without=1.0) < 0.16
    decode(gate, 1000, with_it=1.0, without=1.5)
    assert decode(gate, 500, with_it=1.0, without=1.5) > 0.84


@settings(max_examples=20)
@given(st.floats(0.8, 1.25))
def test_noise_costs_little(with_it):
    """Whatever the gain, the time lost against the better mode stays small."""
    gate = CostGate()
    decode(gate, 1000, with_it, 1.0, noise=0.3)
    share = decode(gate, 4000, with_it, 1.0, noise=0.3)
    assert share * with_it + (1 - share) < 1.04 * min(with_it, 1.0)


def test_it_says_when_it_is_only_asking():
    gate = CostGate()
    probing = []
    for _ in range(FIRST_SPELL + LONGEST_SPELL + 2 * PROBE):
        probing.append(gate.is_probing)
        assert gate.is_probing is not gate.on
        gate.step_ended(1.0 if gate.on else 2.0, 0.5)
    assert sum(probing) == 2 * PROBE


def test_one_piece_of_text_that_waits_longer_does_not_turn_it_off():
    """The tokens before the first probe met a new topic: three times the waiting, whatever the mode."""
    gate = CostGate()
    for _ in range(FIRST_SPELL):
        gate.step_ended(1.0 + 3 * 0.65, 3 * 0.65)
    for _ in range(PROBE):
        gate.step_ended(1.0 + 1.0, 1.0)
    assert gate.pays and gate.gain > 0


@pytest.mark.parametrize(("waiting", "pays"), [(0.1, False), (1.0, True)])
def test_what_prediction_computes_is_weighed_against_what_there_is_to_win(waiting, pays):
    gate = CostGate()
    for _ in range(FIRST_SPELL + PROBE):
        waited = waiting * (0.65 if gate.on else 1.0)
        gate.step_ended((1.1 if gate.on else 1.0) + waited, waited)
    assert gate.pays is pays
