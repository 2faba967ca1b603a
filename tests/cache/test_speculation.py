"""Prefetching changes when bytes move, never which bytes are computed with, whatever it guesses and whatever fails."""

from __future__ import annotations

import threading
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.expert_cache import ExpertCache
from engine.cache.link import Priority, Transfer
from engine.cache.predicted_next_use import PredictedNextUse
from engine.checkpoint.expert_key import ExpertKey
from engine.routing.forecast import Forecast
from engine.routing.prefetcher import Prefetcher
from engine.routing.shape import RoutingShape
from tests.cache.memory_link import EXPERT_BYTES, MemoryLink, tag
from tests.routing.guesses import Told

LAYERS, EXPERTS, TOP_K = 4, 8, 2
SHAPE = RoutingShape(LAYERS, EXPERTS, TOP_K, vocabulary=100)
chosen = st.lists(
    st.lists(st.integers(0, EXPERTS - 1), min_size=TOP_K, max_size=TOP_K, unique=True),
    min_size=LAYERS,
    max_size=LAYERS,
)


def make_cache(link: MemoryLink, slots: int, guesses: np.ndarray, **arguments) -> ExpertCache:
    forecast = Forecast(SHAPE, Told(guesses))
    policy = PredictedNextUse(forecast.value)
    return ExpertCache(
        link, policy, [EXPERTS] * LAYERS, slots, prefetcher=Prefetcher(forecast, policy.absent, **arguments)
    )


def decode(cache: ExpertCache, token: list[list[int]]) -> None:
    """One token; checks that each expert's bytes are its own."""
    cache.begin_step(0)
    decode_layers(cache, token)


def decode_layers(cache: ExpertCache, token: list[list[int]]) -> None:
    for layer, experts in enumerate(token):
        cache.observe(layer, np.zeros((1, 1), np.float32), np.array([experts]), np.full((1, TOP_K), 0.5))
        seen = []
        with cache.acquire(layer, experts) as lease:
            while batch := lease.next_batch():
                for expert, weights in batch:
                    assert (weights.tensors["weight"] == tag(ExpertKey(layer, expert))).all()
                    seen.append(expert)
        assert sorted(seen) == sorted(experts)
    cache.step_ended()


def decode_joined(cache: ExpertCache, link: MemoryLink, token: list[list[int]]) -> None:
    """One token as the decoding fast path reads it: nobody is asked for layers whose experts all have addresses."""
    cache.begin_step(0)
    addresses, pauses = cache.addresses(), cache.pauses()
    assert addresses is not None
    arrays = {array.ctypes.data: array for array in link.slots.values()}
    shares, begun = np.full((LAYERS, TOP_K), 0.5, np.float32), 0

    def tell(stop: int) -> None:
        if stop > begun:
            cache.computed(begun, [], np.array(token[begun:stop]), shares[begun:stop])

    for layer, experts in enumerate(token):
        if not addresses[layer, experts].all():
            tell(layer)
            begun = layer + 1
            cache.observe(layer, np.zeros((1, 1), np.float32), np.array([experts]), shares[:1])
            with cache.acquire(layer, experts) as lease:
                while batch := lease.next_batch():
                    for expert, weights in batch:
                        assert (weights.tensors["weight"] == tag(ExpertKey(layer, expert))).all()
            continue
        if pauses[layer]:
            tell(layer)
            begun = layer
            cache.routed(layer, (np.zeros(1, np.float32), np.array(experts), shares[0]))
        for expert in experts:
            time.sleep(0.0003)  # guesses arrive meanwhile, and others are loaded
            assert (arrays[int(addresses[layer, expert])] == tag(ExpertKey(layer, expert))).all()
    tell(LAYERS)
    cache.step_ended()


@settings(max_examples=30, deadline=None)
@given(st.lists(chosen, min_size=2, max_size=6), st.integers(4, LAYERS * EXPERTS - 1), st.integers(0, 1000))
def test_who_is_computed_with_where_it_lies_stays_there_whatever_is_guessed(tokens, slots, seed):
    link = MemoryLink(delay_seconds=0.0002)
    cache = make_cache(link, slots, np.random.default_rng(seed).random((2, LAYERS, EXPERTS)), least=0.1, margin=0.0)
    try:
        for token in tokens:
            decode_joined(cache, link, token)
            cache.check()
        counted = cache.counters()
        assert counted["activations"] == len(tokens) * LAYERS * TOP_K
        assert cache.use_counts().sum() == counted["activations"]
        assert counted["bytes_prefetch_pending"] >= 0
    finally:
        cache.close()


def test_what_one_chat_foresaw_is_not_loaded_in_a_pass_of_several():
    link, guesses = MemoryLink(delay_seconds=0.001), np.full((1, LAYERS, EXPERTS), 0.9, np.float32)
    cache = make_cache(link, LAYERS * EXPERTS - 1, guesses)
    try:
        cache.begin_step(0)
        cache.begin_joint_step()
        started = int((cache.residency_map() > 0).sum())
        time.sleep(0.1)  # what is on its way arrives
        assert started < LAYERS * EXPERTS - 1
        assert int((cache.residency_map() == 2).sum()) == started
    finally:
        cache.close()


def test_a_guess_that_was_read_without_being_acquired_is_used_though_it_leaves_at_once():
    link, guesses = MemoryLink(), np.zeros((1, LAYERS, EXPERTS), np.float32)
    guesses[0, 1, [4, 5]] = 0.9
    cache = make_cache(link, 2, guesses)
    try:
        cache.begin_step(0)
        deadline = time.monotonic() + 10
        while (cache.residency_map()[1] == 2).sum() < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        token = [[0, 1], [4, 5], [0, 1], [0, 1]]
        assert cache.addresses() is not None and cache.addresses()[1, [4, 5]].all()
        cache.computed(1, [], np.array(token[1:2]), np.full((1, TOP_K), 0.5, np.float32))
        with cache.acquire(2, [0, 1]) as lease:  # both slots change hands
            while lease.next_batch():
                pass
        counted = cache.counters()
        assert counted["bytes_prefetch_used"] == 2 * EXPERT_BYTES and counted["bytes_prefetch_wasted"] == 0
    finally:
        cache.close()


@settings(max_examples=60)
@given(
    st.lists(st.one_of(chosen, st.integers(2, LAYERS * EXPERTS)), min_size=1, max_size=8),
    st.integers(2, 24),
    st.integers(0, 1000),
)
def test_any_guess_gives_the_right_bytes_within_the_slots(actions, slots, seed):
    link = MemoryLink(delay_seconds=0.0002)
    cache = make_cache(link, slots, np.random.default_rng(seed).random((2, LAYERS, EXPERTS)))
    try:
        for action in actions:
            if isinstance(action, int):
                cache.resize(action)
                slots = action
            else:
                decode(cache, action)
            cache.check()
            assert len(link.slots) == slots
        moved = cache.counters()
        assert moved["bytes_prefetch_pending"] >= 0
    finally:
        cache.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("expertflow-reader")]


def test_guesses_that_come_true_are_hits_and_counted_as_used():
    link = MemoryLink(readers=1)
    guesses = np.zeros((1, LAYERS, EXPERTS))
    guesses[0, :, :TOP_K] = 0.9
    cache = make_cache(link, LAYERS * EXPERTS, guesses)
    try:
        cache.begin_step(0)
        wait_until(lambda: (cache.residency_map() == 2).sum() == LAYERS * TOP_K)
        decode_layers(cache, [[0, 1]] * LAYERS)
        counted = cache.counters()
        assert (counted["hits"], counted["late"], counted["misses"]) == (LAYERS * TOP_K, 0, 0)
        assert counted["bytes_prefetch_used"] == LAYERS * TOP_K * EXPERT_BYTES
        assert counted["bytes_demand"] == 0
    finally:
        cache.close()


class GuessesFail(MemoryLink):
    """A link on which nothing arrives that was asked for on a guess."""

    def copy(self, transfer: Transfer, start: int, stop: int) -> None:
        super().copy(transfer, start, stop)
        if transfer.origin is not Priority.DEMAND:
            raise OSError("read error")


@settings(max_examples=15)
@given(st.lists(chosen, min_size=2, max_size=4), st.integers(3, 12))
def test_guesses_that_fail_cost_nothing_but_time(tokens, slots):
    cache = make_cache(GuessesFail(delay_seconds=0.001), slots, np.full((2, LAYERS, EXPERTS), 0.9))
    try:
        for token in tokens:
            decode(cache, token)
            cache.check()
        counted = cache.counters()
        assert counted["bytes_prefetch_used"] == counted["bytes_prefetch_pending"] == 0
    finally:
        cache.close()


def test_what_the_step_needs_is_never_evicted_for_a_guess():
    """Two slots: while a layer's experts are in use, no guess may take their place."""
    link = MemoryLink(delay_seconds=0.001)
    cache = make_cache(link, 2, np.full((2, LAYERS, EXPERTS), 0.99), margin=-1.0)
    try:
        for token in ([[0, 1]] * LAYERS, [[6, 7]] * LAYERS):
            decode(cache, token)
    finally:
        cache.close()


def wait_until(condition, seconds: float = 30.0) -> None:
    waiting = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        waiting.wait(0.005)
    raise AssertionError("it did not happen")


class SaysLater:
    """Stage 2 that knows only in layer 0 that layer 2 takes expert 7."""

    def ahead(self, layer, hidden, stage1):
        said = np.zeros((2, EXPERTS), np.float32)
        said[1, 7] = layer == 0
        return said[: LAYERS - 1 - layer]


def test_what_the_correction_adds_is_counted_as_correction():
    link = MemoryLink(readers=1)
    forecast = Forecast(SHAPE, Told(np.zeros((1, LAYERS, EXPERTS))), SaysLater())
    policy = PredictedNextUse(forecast.value)
    prefetcher = Prefetcher(forecast, policy.absent)
    cache = ExpertCache(link, policy, [EXPERTS] * LAYERS, LAYERS * EXPERTS, prefetcher=prefetcher)
    try:
        decode(cache, [[0, 1], [0, 1], [0, 7], [0, 1]])
        counted = cache.counters()
        assert counted["bytes_correction"] == EXPERT_BYTES
        assert counted["bytes_demand"] == (2 * LAYERS - 1) * EXPERT_BYTES
        assert counted["bytes_prefetch_used"] == counted["bytes_prefetch_pending"] == 0
        assert counted["prediction_seconds"] > 0
    finally:
        cache.close()
