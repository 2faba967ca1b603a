"""Joint passes that load on a guess: the right bytes within the slots, whatever is guessed, fails or dawdles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.expert_cache import ExpertCache
from engine.cache.policies import LRU
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import TransferFailed
from engine.routing.predictive_policy import predictive_policy
from engine.routing.predictors.baselines import NoPrediction
from engine.routing.shape import RoutingShape
from tests.cache.memory_link import EXPERT_BYTES, MemoryLink, tag
from tests.cache.test_speculation import GuessesFail, wait_until

LAYERS, EXPERTS, TOP_K = 4, 8, 2
SHAPE = RoutingShape(LAYERS, EXPERTS, TOP_K, vocabulary=10)

joint = st.tuples(st.just("joint"), st.integers(1, 5), st.integers(0, 100))  # chats, seed
alone = st.tuples(st.just("alone"), st.just(1), st.integers(0, 100))
resized = st.tuples(st.just("resize"), st.integers(2, LAYERS * EXPERTS), st.just(0))
prompt = st.tuples(st.just("prompt"), st.integers(1, 6), st.integers(0, 100))


class RandomRouters:
    """A correction that says anything."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def touched_ahead(self, layer, hidden, stage1):
        return self._random.random((min(2, LAYERS - 1 - layer), EXPERTS)).astype(np.float32)


def make_cache(link: MemoryLink, slots: int, seed: int = 0) -> ExpertCache:
    made = predictive_policy(SHAPE, NoPrediction(SHAPE), None, None, RandomRouters(seed))
    return ExpertCache(link, made.eviction, [EXPERTS] * LAYERS, slots, prefetcher=made.prefetcher, waves=made.waves)


def read_layers(cache: ExpertCache, routing: np.ndarray) -> None:
    """routing: [rows, layers, top k]; checks that each expert's bytes are its own."""
    for layer in range(LAYERS):
        chosen = routing[:, layer]
        experts = np.unique(chosen).tolist()
        cache.observe(layer, np.zeros((len(chosen), 1), np.float32), chosen, np.full(chosen.shape, 0.5))
        seen = []
        with cache.acquire(layer, experts) as lease:
            while batch := lease.next_batch():
                for expert, weights in batch:
                    assert (weights.tensors["weight"] == tag(ExpertKey(layer, expert))).all()
                    seen.append(expert)
        assert sorted(seen) == experts


def routing_of(rows: int, seed: int, experts: int = EXPERTS) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, LAYERS, experts)).argsort(-1)[..., :TOP_K]


def act(cache: ExpertCache, kind: str, number: int, seed: int) -> None:
    if kind == "resize":
        cache.resize(number)
    elif kind == "prompt":
        cache.begin_prefill(number, TOP_K)
        read_layers(cache, routing_of(number, seed))
        cache.begin_decode()
    else:
        if kind == "alone":
            cache.begin_step(0)
        else:
            foretold = np.random.default_rng(seed).random((number, 2, LAYERS, EXPERTS)).astype(np.float32)
            cache.begin_joint_step(foretold if seed % 3 == 0 else None)
        read_layers(cache, routing_of(number, seed))
        cache.step_ended()


@settings(max_examples=20)
@given(
    st.lists(st.one_of(joint, joint, alone, resized, prompt), min_size=1, max_size=10),
    st.integers(2, 24),
    st.integers(0, 1000),
)
def test_any_guess_gives_the_right_bytes_within_the_slots(actions, slots, seed):
    link = MemoryLink(delay_seconds=0.0002)
    cache = make_cache(link, slots, seed)
    try:
        for kind, number, chance in actions:
            act(cache, kind, number, chance)
            slots = number if kind == "resize" else slots
            cache.check()
            assert len(link.slots) == slots
        moved = cache.counters()
        assert moved["bytes_prefetch_pending"] >= 0
        assert moved["hits"] + moved["late"] + moved["misses"] == moved["activations"]
    finally:
        cache.close()


@settings(max_examples=10)
@given(st.lists(joint, min_size=2, max_size=5), st.integers(3, 12))
def test_guesses_that_fail_cost_nothing_but_time(actions, slots):
    cache = make_cache(GuessesFail(delay_seconds=0.001), slots)
    try:
        for kind, number, chance in actions:
            act(cache, kind, number, chance)
            cache.check()
        counted = cache.counters()
        assert counted["bytes_prefetch_used"] == counted["bytes_prefetch_pending"] == 0
    finally:
        cache.close()


def test_what_the_next_layers_need_sets_out_before_they_ask():
    cache = make_cache(MemoryLink(readers=1), LAYERS * EXPERTS // 2)
    routing = np.tile(np.array([0, 1]), (4, LAYERS, 1))
    try:
        for _ in range(20):  # until it is known that every row uses the first two of each layer
            act_on(cache, routing)
        cache.resize(TOP_K)
        cache.resize(LAYERS * TOP_K)  # all but two have left
        before = cache.counters()
        cache.begin_joint_step()
        wait_until(lambda: cache.residency_map()[:, :2].min() == 2)
        read_layers(cache, routing)
        cache.step_ended()
        counted = cache.counters()
        assert counted["hits"] - before["hits"] >= TOP_K
        assert counted["bytes_prefetch_used"] > before["bytes_prefetch_used"]
    finally:
        cache.close()


def act_on(cache: ExpertCache, routing: np.ndarray) -> None:
    cache.begin_joint_step()
    read_layers(cache, routing)
    cache.step_ended()


def test_a_pass_that_fails_leaves_the_next_ones_right():
    link = MemoryLink(failures={20: OSError("read error"), 21: OSError("read error")})
    cache = make_cache(link, 6)
    failed = 0
    try:
        for seed in range(12):
            try:
                act(cache, "joint", 4, seed)
            except TransferFailed:
                failed += 1
            cache.check()
        assert failed <= 2 and len(link.copied) > 20
    finally:
        cache.close()


def test_plain_policies_stay_plain_in_joint_passes():
    cache = ExpertCache(MemoryLink(), LRU(), [EXPERTS] * LAYERS, 10)
    try:
        for seed in range(5):
            act(cache, "joint", 3, seed)
        counted = cache.counters()
        assert counted["bytes_prefetch_used"] == counted["bytes_prefetch_wasted"] == 0
        assert counted["bytes_demand"] == counted["misses"] * EXPERT_BYTES
        assert counted["prediction_seconds"] == 0
    finally:
        cache.close()


@pytest.mark.parametrize("kinds", [("joint", "alone"), ("alone", "joint", "joint")])
def test_steps_of_one_chat_between_passes_are_foreseen_as_ever(kinds):
    cache = make_cache(MemoryLink(), 12)
    try:
        for number in range(12):
            kind = kinds[number % len(kinds)]
            act(cache, kind, 1 if kind == "alone" else 4, number)
            cache.check()
            assert cache._waves.in_joint_pass is (kind == "joint")
            assert cache._speculation.prefetcher is (cache._waves if kind == "joint" else cache._prefetcher)
    finally:
        cache.close()
