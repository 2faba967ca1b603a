"""The cache under random use: right bytes, bounded slots, nothing leaked, whatever fails."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.expert_cache import ExpertCache
from engine.cache.policy_choice import ADAPTIVE, PLAIN_POLICIES, make_policy
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import EngineClosed, TransferFailed
from tests.cache.memory_link import EXPERT_BYTES, MemoryLink, tag

LAYERS, EXPERTS = 4, 8

acquire = st.tuples(
    st.just("acquire"), st.integers(0, LAYERS - 1), st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS)
)
resize = st.tuples(st.just("resize"), st.integers(1, LAYERS * EXPERTS))
prefill = st.tuples(st.just("prefill"), st.integers(1, 40))


def make_cache(link: MemoryLink, slots: int, policy: str = "lru") -> ExpertCache:
    return ExpertCache(link, make_policy(policy, LAYERS), [EXPERTS] * LAYERS, slots)


def use(cache: ExpertCache, layer: int, experts: list[int]) -> list[int]:
    """Acquires, checks that each expert's bytes are its own, and returns the order in which they came."""
    order = []
    with cache.acquire(layer, experts) as lease:
        while batch := lease.next_batch():
            for expert, weights in batch:
                assert (weights.tensors["weight"] == tag(ExpertKey(layer, expert))).all()
                order.append(expert)
    return order


def prefill_all(cache: ExpertCache, tokens: int) -> None:
    cache.begin_prefill(tokens, top_k=2)
    for layer in range(LAYERS):
        needed = sorted({(7 * token + layer) % EXPERTS for token in range(tokens)})
        cache.observe(layer, None, [needed], None)
        assert sorted(use(cache, layer, needed)) == needed
    cache.begin_decode()


POLICIES = st.sampled_from((*PLAIN_POLICIES, ADAPTIVE))


@settings(max_examples=60)
@given(st.lists(st.one_of(acquire, resize, prefill), max_size=25), st.integers(1, 20), POLICIES)
def test_any_use_gives_the_right_bytes_within_the_slots(actions, slots, policy):
    link = MemoryLink(delay_seconds=0.0002)
    cache = make_cache(link, slots, policy)
    try:
        for action, *arguments in actions:
            if action == "acquire":
                layer, experts = arguments
                assert sorted(use(cache, layer, sorted(experts))) == sorted(experts)
                cache.step_ended()
            elif action == "prefill":
                prefill_all(cache, arguments[0])
            else:
                cache.resize(arguments[0])
                assert cache.slots == arguments[0] == len(link.slots)
            cache.check()
            assert len(link.slots) == cache.slots
        counters = cache.counters()
        moved = counters["bytes_demand"] + counters["bytes_prefetch_used"] + counters["bytes_prefetch_wasted"]
        moved += counters["bytes_prefetch_pending"]
        cache.resize(1)  # waits for what is in flight
        assert moved <= len(link.copied) * EXPERT_BYTES
    finally:
        cache.close()


@settings(max_examples=40)
@given(
    st.lists(acquire, min_size=1, max_size=20),
    st.dictionaries(st.integers(0, 60), st.just(OSError(5, "Input/output error")), max_size=6),
    st.integers(1, 12),
)
def test_a_failed_read_is_an_error_once_and_never_wrong_bytes(actions, failures, slots):
    cache = make_cache(MemoryLink(failures=failures), slots)
    try:
        for _, layer, experts in actions:
            try:
                assert sorted(use(cache, layer, sorted(experts))) == sorted(experts)
            except TransferFailed as error:
                assert "could not be read" in error.cause and error.remedy
            cache.check()
        for layer in range(LAYERS):  # past all failures, every expert can be had
            for expert in range(EXPERTS):
                for _ in range(1 + len(failures)):
                    try:
                        assert use(cache, layer, [expert]) == [expert]
                        break
                    except TransferFailed:
                        continue
                else:
                    pytest.fail("an expert stays unreadable")
    finally:
        cache.close()


def test_residents_come_first_and_do_not_wait():
    link = MemoryLink(delay_seconds=0.002)
    cache = make_cache(link, slots=8)
    use(cache, 0, [3])
    assert use(cache, 0, [1, 2, 3])[0] == 3
    counters = cache.counters()
    assert (counters["hits"], counters["misses"], counters["activations"]) == (1, 3, 4)
    cache.close()


def test_fewer_slots_than_one_layer_needs_is_served_in_waves():
    link = MemoryLink()
    cache = make_cache(link, slots=2)
    assert sorted(use(cache, 1, list(range(EXPERTS)))) == list(range(EXPERTS))
    assert link.most_slots == 2
    cache.close()


def test_what_the_current_step_uses_is_never_evicted():
    cache = make_cache(MemoryLink(), slots=3)
    with cache.acquire(0, [0]) as lease:
        [(expert, weights)] = lease.next_batch()
        for other in range(4):
            use(cache, 2, [other, other + 1])
        assert (weights.tensors["weight"] == tag(ExpertKey(0, expert))).all()
        assert cache.residency_map()[0, 0] == 2
    cache.close()


def test_a_warm_decode_cache_survives_a_prefill():
    """A prefill streams through a bounded part of the slots instead of replacing everything."""
    cache = make_cache(MemoryLink(), slots=16)
    favourites = [(layer, expert) for layer in range(LAYERS) for expert in (0, 1)]
    for _ in range(3):
        for layer, expert in favourites:
            use(cache, layer, [expert])
    for layer in range(LAYERS):
        use(cache, layer, [5, 6])
    for layer, expert in favourites:
        use(cache, layer, [expert])
    prefill_all(cache, tokens=40)
    resident = cache.residency_map() == 2
    kept = sum(resident[layer, expert] for layer, expert in favourites)
    assert kept >= len(favourites) - 2
    cache.close()


def test_prefill_from_cold_leaves_something_of_every_layer():
    cache = make_cache(MemoryLink(), slots=12)
    prefill_all(cache, tokens=40)
    per_layer = (cache.residency_map() == 2).sum(axis=1)
    assert per_layer.min() >= 2
    cache.close()


def test_resize_gives_memory_back_and_keeps_what_was_used_last():
    link = MemoryLink()
    cache = make_cache(link, slots=12)
    for expert in range(EXPERTS):
        use(cache, 0, [expert])
    cache.resize(2)
    assert len(link.slots) == 2
    assert (cache.residency_map()[0] == [0, 0, 0, 0, 0, 0, 2, 2]).all()
    cache.close()


def test_closing_wakes_whoever_waits_and_ends_the_threads():
    link = MemoryLink(delay_seconds=0.5)
    cache = make_cache(link, slots=4)
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            use(cache, 0, [0, 1, 2, 3])
        except EngineClosed as error:
            seen.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not link.copied:
        threading.Event().wait(0.001)
    cache.close()
    waiting.join(timeout=10)
    assert not waiting.is_alive() and link.closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("expertflow-reader")]
    with pytest.raises(EngineClosed):
        cache.acquire(0, [0])
