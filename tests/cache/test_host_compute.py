"""Misses shared out between the link and the processor: the split that is done soonest, whatever was measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.expert_cache import ExpertCache
from engine.cache.host_compute import HostCompute
from engine.cache.link import ExpertWeights
from engine.cache.policies import layer_lru
from engine.cache.timed_transfers import EmulatedSpeed
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import InvalidSetting, TransferFailed
from engine.lab.simulation.virtual_transfers import VirtualLink, VirtualTransfers

LAYERS, EXPERTS, EXPERT_BYTES = 4, 8, 1_000_000
seconds = st.floats(1e-5, 1.0)
chosen = st.lists(
    st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=3, unique=True), min_size=LAYERS, max_size=LAYERS
)


def measured(host: float, transfer: float) -> HostCompute:
    made = HostCompute()
    made.computed(host)
    made.transferred(transfer)
    return made


@given(seconds, seconds, st.integers(1, 8))
def test_the_first_split_is_the_soonest_done(host, transfer, misses):
    count = measured(host, transfer).share(misses)
    done = [max(n * host, (misses - n) * transfer) for n in range(misses + 1)]
    spared = done[count] - min(done)
    assert spared <= min(done) / 64 + 1e-12  # a little goes into measuring the idle side


def test_the_link_is_measured_first_and_then_the_processor_once():
    made = HostCompute()
    assert made.share(3) == 0 and made.pays is None
    made.transferred(0.002)
    assert made.share(3) == 1
    made.computed(0.001)
    assert made.pays
    assert measured(0.002, 0.001).pays is False


def test_the_side_that_loses_is_measured_again_for_little_time():
    made = measured(host=0.1, transfer=0.001)
    tried = sum(made.share(1) for _ in range(20_000))
    assert 2 <= tried <= 4  # of 20 seconds, a 64th is the time of three
    made.computed(0.0)  # the outlier is forgotten as better measurements come
    for _ in range(60):
        made.computed(0.0005)
    assert made.pays


def simulated(speed: EmulatedSpeed, slots: int) -> tuple[ExpertCache, VirtualTransfers]:
    made: list[VirtualTransfers] = []

    def make(*arguments) -> VirtualTransfers:
        made.append(VirtualTransfers(*arguments))
        return made[0]

    link = VirtualLink(EXPERT_BYTES, speed)
    return ExpertCache(link, layer_lru(LAYERS), [EXPERTS] * LAYERS, slots, make_transfers=make), made[0]


def decode(cache: ExpertCache, clock: VirtualTransfers, token: list[list[int]]) -> None:
    for layer, experts in enumerate(token):
        cache.observe(layer, None, np.array([experts]), np.full((1, len(experts)), 0.5))
        with cache.acquire(layer, experts) as lease:
            seen = []
            while batch := lease.next_batch():
                seen += [expert for expert, _ in batch]
                clock.advance(1e-4 * len(batch))
        assert sorted(seen) == sorted(experts)
    cache.step_ended()


@settings(max_examples=60)
@given(st.lists(chosen, min_size=1, max_size=12), st.integers(1, 24), st.sampled_from([0.1, 1.0, 10.0]))
def test_every_expert_is_handed_out_once_whoever_computes_it(tokens, slots, host_gigabytes):
    cache, clock = simulated(EmulatedSpeed(1e9, 0.0, host_gigabytes * 1e9), slots)
    for token in tokens:
        decode(cache, clock, token)
        cache.check()
    counted = cache.counters()
    assert counted["activations"] == sum(len(layer) for token in tokens for layer in token)
    assert counted["computed_far"] <= counted["misses"]
    moved = sum(counted[f"bytes_{name}"] for name in ("demand", "prefetch_used", "prefetch_wasted"))
    assert moved + counted["bytes_prefetch_pending"] <= EXPERT_BYTES * (counted["misses"] + counted["late"])


def wait_and_time(host_gigabytes: float | None) -> tuple[float, dict]:
    cache, clock = simulated(EmulatedSpeed(1e9, 0.0, host_gigabytes and host_gigabytes * 1e9), slots=LAYERS)
    random = np.random.default_rng(0)
    for _ in range(100):
        decode(cache, clock, [random.choice(EXPERTS, 2, replace=False).tolist() for _ in range(LAYERS)])
    return clock.now(), cache.counters()


def test_a_fast_processor_spares_waiting_and_a_slow_one_costs_next_to_nothing():
    alone, plain = wait_and_time(None)
    fast, with_fast = wait_and_time(4.0)
    slow, with_slow = wait_and_time(0.05)
    assert plain["computed_far"] == 0
    assert with_fast["computed_far"] > 0.4 * with_fast["misses"]
    assert fast < 0.5 * alone and with_fast["stall_seconds"] < 0.5 * plain["stall_seconds"]
    assert with_slow["computed_far"] < 0.02 * with_slow["misses"] and slow < 1.03 * alone


def test_says_what_it_does():
    assert HostCompute().words(0, 0) == ""
    assert "38% of those absent" in measured(0.001, 0.002).words(38, 100)
    assert "are moved, 1 ms each" in measured(0.002, 0.001).words(0, 100)


def test_a_lease_left_early_gives_the_far_copy_back():
    class Counting(VirtualLink):
        borrowed = 0

        def host_weights(self, key: ExpertKey) -> ExpertWeights:
            self.borrowed += 1
            return super().host_weights(key)

        def host_released(self, key: ExpertKey) -> None:
            self.borrowed -= 1

    link = Counting(EXPERT_BYTES, EmulatedSpeed(1e9, 0.0, 1e12))
    cache = ExpertCache(link, layer_lru(LAYERS), [EXPERTS] * LAYERS, LAYERS, make_transfers=VirtualTransfers)
    for expert in range(EXPERTS):
        lease = cache.acquire(0, [expert, (expert + 1) % EXPERTS])
        lease.next_batch()
        lease.close()
        assert link.borrowed == 0
    assert cache.counters()["computed_far"] > 0


def test_a_far_copy_that_cannot_be_read_ends_the_answer_in_words_and_the_next_one_works():
    class Unreadable(VirtualLink):
        fails = True

        def host_weights(self, key: ExpertKey) -> ExpertWeights:
            if self.fails:
                raise OSError("input/output error")
            return super().host_weights(key)

    link = Unreadable(EXPERT_BYTES, EmulatedSpeed(1e9, 0.0, 1e12))
    cache = ExpertCache(link, layer_lru(LAYERS), [EXPERTS] * LAYERS, LAYERS, make_transfers=VirtualTransfers)
    with cache.acquire(0, [0]) as lease:
        lease.next_batch()  # how long the link takes is known now
    with (
        pytest.raises(TransferFailed, match="Expert 1 of layer 0 .* input/output error"),
        cache.acquire(0, [1]) as lease,
    ):
        lease.next_batch()
    link.fails = False
    with cache.acquire(0, [1]) as lease:
        assert [expert for expert, _ in lease.next_batch()] == [1]
    cache.check()


def test_the_speed_of_the_processor_is_part_of_an_emulated_links_name():
    assert EmulatedSpeed.parse("emulated:2GBps/host:10GBps") == EmulatedSpeed(2e9, 0.0, 10e9)
    assert EmulatedSpeed.parse("emulated:2.5GBps+20us/host:0.5GBps") == EmulatedSpeed(2.5e9, 20e-6, 0.5e9)
    for wrong in ("emulated:2GBps/host:0GBps", "emulated:2GBps/host:"):
        with pytest.raises(InvalidSetting, match="host"):
            EmulatedSpeed.parse(wrong)
