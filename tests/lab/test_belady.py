"""The replay against an exhaustive search and against simple caches written down a second time."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache.policies import LRU, DecayedLFU, layer_lru
from engine.lab.belady import belady_bytes, decoded_steps, replay, replay_belady
from engine.routing.traces.trace import NOBODY, RoutingTrace

LAYERS, EXPERTS, TOP_K = 2, 4, 2


def routings(max_steps: int):
    """Routing of a model with 2 layers of 4 experts, 2 for each token."""
    chosen = st.sets(st.integers(0, EXPERTS - 1), min_size=TOP_K, max_size=TOP_K).map(tuple)
    step = st.tuples(*[chosen] * LAYERS).map(lambda layers: list(enumerate(layers)))
    return st.lists(step, max_size=max_steps)


def requests_of(steps):
    """The sets of keys that must be resident together, in order."""
    return [frozenset((layer, expert) for expert in experts) for step in steps for layer, experts in step]


def fewest_misses(steps, slots: int) -> int:
    """By trying every choice of what to keep."""
    requests = requests_of(steps)

    @cache
    def best(position: int, content: frozenset) -> int:
        if position == len(requests):
            return 0
        request = requests[position]
        missing = request - content
        return len(missing) + min(best(position + 1, kept) for kept in _contents(content | request, request, slots))

    return best(0, frozenset())


def _contents(candidates: frozenset, needed: frozenset, slots: int):
    """Every content of at most `slots` keys that has all of `needed`; keeping more is never worse."""
    from itertools import combinations

    optional = sorted(candidates - needed)
    return [needed | set(kept) for kept in combinations(optional, min(len(optional), slots - len(needed)))]


def naive_misses(steps, slots: int, rank) -> int:
    """A cache that evicts the lowest-ranked key; `rank(key, last_use, uses)`."""
    content, last_use, uses, misses = set(), {}, Counter(), 0
    for moment, request in enumerate(requests_of(steps)):
        uses.update(request)
        last_use.update(dict.fromkeys(request, moment))
        missing = request - content
        misses += len(missing)
        content |= request
        while len(content) > slots:
            content.remove(min(content - request, key=lambda key: rank(key, last_use, uses)))
    return misses


@given(routings(6), st.integers(TOP_K, 5))
def test_nothing_can_miss_less(steps, slots):
    assert replay_belady(steps, slots).misses == fewest_misses(steps, slots)


@given(routings(40), st.integers(TOP_K, LAYERS * EXPERTS))
def test_no_online_cache_misses_less(steps, slots):
    least = replay_belady(steps, slots).misses
    assert least <= naive_misses(steps, slots, lambda key, last_use, uses: (last_use[key], key))
    assert least <= naive_misses(steps, slots, lambda key, last_use, uses: (uses[key], key))
    for policy in (LRU(), layer_lru(LAYERS), DecayedLFU()):
        assert least <= replay(steps, slots, policy).misses


@given(routings(40), st.integers(TOP_K, LAYERS * EXPERTS))
def test_the_engines_lru_replayed_is_a_plain_lru(steps, slots):
    content: list = []  # least recently used first; what is found is used before what has to be loaded
    misses = 0
    for step in steps:
        for layer, experts in step:
            keys = [(layer, expert) for expert in experts]
            found, missing = [k for k in keys if k in content], [k for k in keys if k not in content]
            content = [key for key in content if key not in found] + found + missing
            content = content[-slots:]
            misses += len(missing)
    assert replay(steps, slots, LRU()).misses == misses


@given(routings(30), st.integers(1, LAYERS * EXPERTS))
def test_counts_add_up_and_more_slots_never_hurt(steps, slots):
    result = replay_belady(steps, slots)
    distinct = len(frozenset().union(*requests_of(steps)))
    assert result.hits + result.misses == result.activations == len(steps) * LAYERS * TOP_K
    assert result.misses >= distinct
    assert result.free_loads == min(slots, distinct)
    assert result.warm_misses >= 0
    assert replay_belady(steps, slots + 1).misses <= result.misses or slots < TOP_K


def test_everything_fits():
    steps = [[(0, (0, 1)), (1, (2, 3))]] * 5
    result = replay_belady(steps, 4)
    assert (result.activations, result.hits, result.misses, result.warm_misses) == (20, 16, 4, 0)
    assert result.hit_rate == 0.8


def test_a_layer_that_needs_more_than_there_are_slots_computes_in_waves():
    result = replay_belady([[(0, (0, 1, 2))], [(0, (0, 1, 2))]], slots=1)
    assert result.hits + result.misses == 6
    assert result.misses >= 5


def test_bytes_are_those_of_warm_misses_answer_by_answer():
    answer = [[(0, (0,))], [(0, (1,))], [(0, (0,))]]
    assert belady_bytes([answer, answer], slots=1, expert_bytes=10) == 40
    assert belady_bytes([answer, answer], slots=2, expert_bytes=10) == 0
    assert belady_bytes([], slots=1, expert_bytes=10) == 0


def test_the_decoding_steps_of_traces_without_what_prefill_read():
    experts = np.array([[[0, 1], [2, 3]], [[4, NOBODY], [5, 6]], [[NOBODY, NOBODY], [7, 0]]], np.int16)
    decoded = np.array([False, True, True])
    trace = RoutingTrace("c", np.zeros(3, np.int32), experts, np.zeros(experts.shape, np.float16), decoded)
    steps = [[(0, (4,)), (1, (5, 6))], [(1, (7, 0))]]
    assert decoded_steps([trace, trace]) == steps + steps
    assert decoded_steps([]) == []


def test_no_slots_is_an_error():
    with pytest.raises(ValueError, match="at least one slot"):
        replay_belady([], 0)


def test_no_steps():
    result = replay_belady([], 4)
    assert (result.activations, result.hit_rate) == (0, 0.0)
