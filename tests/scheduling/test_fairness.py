"""Whatever is preferred, no token is passed over more often than was promised."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduling.cheapest import cheapest_group
from engine.scheduling.fairness import FairPick, least_bound


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nobody_starves_whoever_joins_and_leaves(data):
    size, asked = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 6))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    favourites = random.random(64)  # the same tokens are preferred for ever
    passed: dict[int, int] = {}
    bound = newest = 0
    for _ in range(60):
        for _ in range(data.draw(st.integers(0, 3)) if len(passed) < 20 else 0):
            passed[newest := newest + 1] = 0
        if passed and random.random() < 0.2:
            del passed[int(random.choice(list(passed)))]
        bound = max(bound, asked, least_bound(len(passed), size))
        chats = list(passed)
        pick = FairPick(np.array([bound - passed[chat] for chat in chats], np.int64), size)
        taken = pick.take_in_order(sorted(range(len(chats)), key=lambda place: favourites[chats[place] % 64]))
        assert len(set(taken)) == min(size, len(chats))
        for place, chat in enumerate(chats):
            passed[chat] = 0 if place in taken else passed[chat] + 1
        assert max(passed.values(), default=0) <= bound


def test_where_nobody_must_go_the_preferred_go():
    assert FairPick(np.full(6, 9), 2).take_in_order([4, 1, 0, 2, 3, 5]) == [4, 1]


def test_those_who_must_go_do():
    assert sorted(FairPick(np.array([5, 0, 5, 0]), 3).take_in_order([0, 2, 1, 3])) == [0, 1, 3]
    assert sorted(FairPick(np.array([5, 0, 5, 0]), 3).take_owed([0, 2, 1, 3])) == [1, 3]


def test_groups_that_became_smaller_take_the_most_urgent_first():
    assert FairPick(np.array([1, 0, 0, 0]), 2).take_in_order([0, 3, 2, 1]) == [3, 2]


def test_the_least_bound_is_what_turns_need():
    assert [least_bound(*pair) for pair in ((0, 4), (4, 4), (5, 4), (8, 4), (9, 4), (3, 1))] == [0, 0, 1, 1, 2, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 5))
def test_the_cheapest_groups_keep_the_promise_too(seed, size, asked):
    random = np.random.default_rng(seed)
    paths = random.random((9, 12), np.float32) ** 3
    passed = np.zeros(9, np.int64)
    bound = max(asked, least_bound(9, size))
    for _ in range(40):
        order = np.argsort(-passed, kind="stable")
        taken = cheapest_group(paths, np.ones(12, np.float32), FairPick(bound - passed, size), order)
        assert len(set(taken)) == size
        passed += 1
        passed[taken] = 0
        assert passed.max() <= bound
