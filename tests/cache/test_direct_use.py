"""Experts computed with at their addresses: what is counted, and who leaves next, is as if they had been acquired."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.direct_use import MOST_STEPS, DirectUse
from engine.cache.expert_cache import ExpertCache
from engine.cache.policy_choice import ADAPTIVE, PLAIN_POLICIES, make_policy
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import EngineClosed
from tests.cache.memory_link import MemoryLink, tag
from tests.cache.test_expert_cache import EXPERTS, LAYERS, make_cache, use

TOP_K = 2
step = st.lists(
    st.lists(st.integers(0, EXPERTS - 1), min_size=TOP_K, max_size=TOP_K, unique=True),
    min_size=LAYERS,
    max_size=LAYERS,
)


def acquire_step(cache: ExpertCache, routing: list[list[int]]) -> None:
    for layer, experts in enumerate(routing):
        use(cache, layer, experts)
    cache.step_ended()


def direct_step(cache: ExpertCache, link: MemoryLink, routing: list[list[int]]) -> None:
    """As the decoding fast path does: layers whose experts have addresses together, others acquired."""
    addresses = cache.addresses()
    assert addresses is not None
    run: list[list[int]] = []
    where = {array.ctypes.data: array for array in link.slots.values()}
    for layer, experts in enumerate([*routing, None]):
        if experts is not None and all(addresses[layer, expert] for expert in experts):
            run.append(experts)
            for expert in experts:
                assert (where[addresses[layer, expert]] == tag(ExpertKey(layer, expert))).all()
            continue
        if run:
            cache.computed(layer - len(run), [], np.array(run), np.zeros((len(run), TOP_K), np.float32))
            run = []
        if experts is not None:
            use(cache, layer, experts)
    cache.step_ended()


def state(cache: ExpertCache) -> tuple:
    counters = {name: value for name, value in cache.counters().items() if "seconds" not in name}
    return counters, cache.use_counts().tolist(), cache.residency_map().tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(step, min_size=1, max_size=2 * MOST_STEPS + 3),
    st.integers(TOP_K, LAYERS * EXPERTS),
    st.integers(1, LAYERS * EXPERTS),
    st.sampled_from((*PLAIN_POLICIES, ADAPTIVE)),
)
def test_the_same_counts_residents_and_victims(steps, slots, resized, policy):
    acquired_link, direct_link = MemoryLink(readers=1), MemoryLink(readers=1)
    acquired, direct = make_cache(acquired_link, slots, policy), make_cache(direct_link, slots, policy)
    try:
        for routing in steps:
            acquire_step(acquired, routing)
            direct_step(direct, direct_link, routing)
        assert state(acquired) == state(direct)
        acquired.resize(resized)
        direct.resize(resized)  # evicts by what the policy was told
        assert state(acquired) == state(direct)
        direct.check()
    finally:
        acquired.close()
        direct.close()


def test_the_listener_hears_of_each_layer():
    heard = []
    link = MemoryLink()
    cache = ExpertCache(link, make_policy("lru", LAYERS), [EXPERTS] * LAYERS, 32, lambda *told: heard.append(told))
    assert not cache.addresses().any()
    use(cache, 1, [0, 1])
    assert np.flatnonzero(cache.addresses()).tolist() == [EXPERTS, EXPERTS + 1]
    cache.computed(1, [("hidden", "ids", "weights")], np.array([[0, 1]]), np.zeros((1, TOP_K), np.float32))
    assert heard == [(1, "hidden", "ids", "weights")]
    assert (cache.counters()["hits"], cache.counters()["activations"]) == (2, 4)
    cache.close()
    with pytest.raises(EngineClosed):
        cache.addresses()


def test_counting_waits_for_a_few_steps_and_keeps_their_order():
    counts = np.zeros((2, 4), np.int64)
    direct, told = DirectUse(counts), []
    for number in range(MOST_STEPS):
        assert not direct.is_full
        direct.used(0, np.array([[number % 4], [3]]))
        direct.step_ended()
    assert direct.is_full and not counts.any()
    assert direct.count(told.append, lambda: told.append("end")) == 2 * MOST_STEPS
    assert told[:6] == [(0, 0), (1, 3), "end", (0, 1), (1, 3), "end"]
    assert counts.tolist() == [[2, 2, 2, 2], [0, 0, 0, MOST_STEPS]] and not direct.is_waiting
