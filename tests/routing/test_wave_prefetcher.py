"""What is named to be loaded ahead in a joint pass, and when nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from engine.checkpoint.expert_key import ExpertKey
from engine.routing import wave_prefetcher
from engine.routing.wave_forecast import WaveForecast
from engine.routing.wave_prefetcher import WavePrefetcher

LAYERS, EXPERTS, TOP_K, ROWS = 4, 4, 2, 3


def make(there: list[tuple[int, int]], gated: bool = False) -> tuple[WavePrefetcher, np.ndarray]:
    """Every row has used experts 0 and 1 of each layer, for long; `there` have slots."""
    forecast = WaveForecast(LAYERS, EXPERTS, TOP_K)
    for _ in range(60):
        forecast.begin_pass()
        for layer in range(LAYERS):
            forecast.observed(layer, None, np.array([[0, 1]] * ROWS))
    absent = np.full(LAYERS * EXPERTS, np.inf, np.float32)
    for layer, expert in there:
        absent[layer * EXPERTS + expert] = 0
    return WavePrefetcher(forecast, absent, gated), absent


def named(waves: WavePrefetcher, absent: np.ndarray, free_slot: bool, blocked=()) -> list[tuple[ExpertKey, ...]]:
    """Every guess until there is none, each loaded at once in its victim's place."""
    found = []
    while (guess := waves.next(free_slot, blocked)) is not None:
        found.append((guess.key, guess.victim))
        absent[guess.key.layer * EXPERTS + guess.key.expert] = 0
        if guess.victim is not None:
            absent[guess.victim.layer * EXPERTS + guess.victim.expert] = np.inf
    return found


def test_the_nearest_layers_experts_come_first_all_around_the_cycle():
    waves, absent = make([])
    waves.begin_pass()
    waves.observed(0, None, np.array([[0, 1]] * ROWS), np.ones((ROWS, 2)))
    waves.observed(1, None, np.array([[0, 1]] * ROWS), np.ones((ROWS, 2)))
    keys = [key for key, victim in named(waves, absent, free_slot=True)]
    assert [key.layer for key in keys] == [2, 2, 3, 3, 0, 0, 1, 1]
    assert {key.expert for key in keys} == {0, 1}


def test_what_was_just_used_leaves_for_what_comes_next_but_not_the_other_way_round():
    waves, absent = make([(0, 0), (0, 1)])
    waves.begin_pass()
    assert named(waves, absent, free_slot=False) == []  # the first layer's are the next to be used
    waves.observed(0, None, np.array([[0, 1]] * ROWS), np.ones((ROWS, 2)))
    found = named(waves, absent, free_slot=False, blocked={ExpertKey(0, 1)})
    assert found == [(ExpertKey(1, 0), ExpertKey(0, 0))]  # one is in use


def test_what_failed_is_not_named_again_in_this_pass():
    waves, absent = make([])
    waves.begin_pass()
    first = waves.next(True)
    waves.failed(first.key)
    assert waves.next(True).key != first.key
    waves.begin_pass()
    assert waves.next(True).key == first.key


def test_a_guess_is_wrong_when_its_layer_turned_out_otherwise():
    waves, _ = make([])
    waves.begin_pass()
    assert not waves.is_wrong(ExpertKey(2, 0)) and waves.is_wrong(ExpertKey(2, 3))


def test_nothing_is_named_after_another_step_began():
    waves, _ = make([])
    waves.begin_pass()
    assert waves.in_joint_pass and waves.next(True) is not None
    waves.other_step()
    assert not waves.in_joint_pass and waves.next(True) is None


class Off:
    """A gate that has measured that nothing is won."""

    on = False

    def __init__(self) -> None:
        self.told = 0

    def step_ended(self, seconds: float, waited: float) -> None:
        self.told += 1


def test_where_it_does_not_pay_nothing_is_named_for_that_number_of_chats(monkeypatch):
    monkeypatch.setattr(wave_prefetcher, "CostGate", Off)
    waves, _ = make([], gated=True)
    waves.begin_pass()
    assert not waves.on and waves.next(True) is None
    for layer in range(LAYERS):
        waves.observed(layer, None, np.array([[0, 1]] * ROWS), np.ones((ROWS, 2)))
    waves.end_step(1.0, 0.5)
    assert [gate.told for gate in waves._gates.values()] == [1]
    waves.begin_pass()  # as many chats again, but one leaves: this pass is not what the gate compares
    waves.observed(0, None, np.array([[0, 1]] * (ROWS - 1)), np.ones((ROWS - 1, 2)))
    waves.end_step(1.0, 0.5)
    assert [gate.told for gate in waves._gates.values()] == [1]
    waves.begin_pass()
    assert sorted(waves._gates) == [ROWS - 1, ROWS]


@pytest.mark.parametrize("rows", [2, 5])
def test_predictions_for_each_row_say_how_many_rows_there_are(rows):
    waves, _ = make([], gated=True)
    waves.begin_pass(np.full((rows, 1, LAYERS, EXPERTS), 0.5, np.float32))
    assert list(waves._gates) == [rows]
