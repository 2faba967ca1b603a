"""The prefetcher: the likeliest and soonest first, nothing twice, nothing that is not worth its victim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.checkpoint.expert_key import ExpertKey
from engine.routing.forecast import Forecast
from engine.routing.prefetcher import Prefetcher
from engine.routing.shape import RoutingShape
from tests.routing.guesses import Told

LAYERS, EXPERTS = 3, 4
SHAPE = RoutingShape(LAYERS, EXPERTS, 2, vocabulary=100)
WEIGHTS = np.array([0.6, 0.4])


def prefetcher(
    now: dict[tuple[int, int], float],
    then: dict[tuple[int, int], float] | None = None,
    held: Sequence[tuple[int, int]] = (),
) -> Prefetcher:
    rows = np.zeros((2, LAYERS, EXPERTS))
    for row, places in zip(rows, (now, then or {}), strict=True):
        for place, probability in places.items():
            row[place] = probability
    made = Prefetcher(Forecast(SHAPE, Told(rows)), np.ones(LAYERS * EXPERTS, np.float32))
    for place in held:
        load(made, place)
    made.predict(7)
    made.begin_step()
    return made


def load(made: Prefetcher, place: tuple[int, int]) -> None:
    made._absent[place[0] * EXPERTS + place[1]] = 0


def named(made: Prefetcher) -> list[tuple[int, int]]:
    """Everything it names, one after the other."""
    order = []
    while (guess := made.next(free_slot=True)) is not None:
        order.append(tuple(guess.key))
        load(made, guess.key)
    return order


def test_of_equally_likely_ones_names_the_soonest_first_and_then_the_next_token():
    made = prefetcher({(2, 1): 0.8, (0, 3): 0.8, (1, 0): 0.8, (1, 1): 0.2}, {(0, 0): 0.8})
    assert named(made) == [(0, 3), (1, 0), (2, 1), (0, 0)]


def test_a_much_likelier_one_overtakes_a_sooner_one():
    made = prefetcher({(2, 1): 0.9, (0, 3): 0.4, (1, 0): 0.8})
    assert named(made) == [(1, 0), (2, 1), (0, 3)]


def test_names_nothing_that_is_there():
    made = prefetcher({(0, 3): 0.9, (1, 0): 0.9}, held=[(0, 3)])
    assert named(made) == [(1, 0)]


def test_a_routed_layer_is_not_named_any_more():
    made = prefetcher({(0, 3): 0.9, (1, 0): 0.9})
    made.observed(0, None, np.array([1, 2]), WEIGHTS)
    assert named(made) == [(1, 0)]
    assert made.is_wrong(ExpertKey(0, 3))
    assert not made.is_wrong(ExpertKey(1, 0))


def test_names_whom_a_guess_is_worth_to_drive_out():
    chances = {(1, 0): 0.5, (1, 1): 0.9}
    weaker_held, stronger_held = (prefetcher(chances, held=[held]) for held in ((1, 0), (1, 1)))
    assert weaker_held.next(free_slot=False) == ((1, 1), (1, 0), False)
    assert stronger_held.next(free_slot=False) is None
    assert prefetcher(chances, held=[(1, 1)]).next(free_slot=True) == ((1, 0), None, False)


def test_drives_out_the_least_valued_that_may_leave():
    made = prefetcher({(1, 0): 0.9}, held=[(2, 0), (2, 1), (2, 2)])
    made._forecast.value[2] = [0.1, 0.2, 0.3, 0.0]
    assert made.next(False) == ((1, 0), (2, 0), False)
    assert made.next(False, blocked={ExpertKey(2, 0)}) == ((1, 0), (2, 1), False)
    assert made.next(False, blocked={ExpertKey(2, expert) for expert in range(3)}) is None
    made._absent[2 * EXPERTS] = 1
    assert made.next(False) == ((1, 0), (2, 1), False)


def test_a_correction_is_what_was_not_likely_before_the_step():
    made = prefetcher({(1, 0): 0.9})
    made._forecast.now[2, 3] = 0.8
    found = []
    while (guess := made.next(free_slot=True)) is not None:
        load(made, guess.key)
        found.append((tuple(guess.key), guess.corrects))
    assert found == [((1, 0), False), ((2, 3), True)]


def test_what_cannot_be_read_is_named_again_in_the_next_step_only():
    made = prefetcher({(1, 0): 0.9})
    made.failed(ExpertKey(1, 0))
    made.observed(0, None, np.array([1, 2]), WEIGHTS)
    assert named(made) == []
    made.predict(7)
    made.begin_step()
    assert named(made) == [(1, 0)]


def test_names_nothing_once_paused():
    made = prefetcher({}, {(0, 0): 0.9, (2, 0): 0.9})
    assert named(made) == [(0, 0), (2, 0)]
    made.begin_step()
    made.pause()
    assert named(made) == []


def test_may_correct_says_whether_anything_that_is_named_would_be_a_correction():
    made = prefetcher({(0, 3): 0.9, (1, 0): 0.1, (2, 1): 0.6})
    assert not made.may_correct()
    made._forecast.now[1, 0] = 0.7  # as a router ahead would
    made._outdated = True
    assert made.may_correct()
    assert {tuple(guess.key): guess.corrects for guess in all_guesses(made)} == {
        (0, 3): False,
        (1, 0): True,
        (2, 1): False,
    }
    made._outdated = True
    assert not made.may_correct(), "all of it has a slot"


def all_guesses(made: Prefetcher):
    while (guess := made.next(free_slot=True)) is not None:
        load(made, guess.key)
        yield guess
