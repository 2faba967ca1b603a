"""Simulated decoding: the engine's cache on a virtual clock obeys the arithmetic of one wire."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.policies import LRU, layer_lru
from engine.cache.policy_choice import make_policy
from engine.cache.timed_transfers import EmulatedSpeed
from engine.errors import InvalidSetting
from engine.lab.belady import decoded_steps, replay
from engine.lab.simulation.compute_times import ComputeTimes
from engine.lab.simulation.contenders import Contender, make_contender
from engine.lab.simulation.knowing import KnownReuse
from engine.lab.simulation.lru_curve import lru_curve
from engine.lab.simulation.simulate import SimulatedMachine, Simulator
from engine.routing.predictors.baselines import Oracle
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace

LAYERS, EXPERTS, TOP_K = 4, 6, 2
SHAPE = RoutingShape(LAYERS, EXPERTS, TOP_K, vocabulary=100)
EXPERT_BYTES = 1 << 20
COMPUTE = ComputeTimes(before_routing=1.0, beside_experts=0.0, expert=0.5, after_layers=2.0)


def make_trace(tokens: int, seed: int = 0, prompt: int = 0, top_k: int = TOP_K) -> RoutingTrace:
    random = np.random.default_rng(seed)
    experts = random.random((tokens, LAYERS, EXPERTS)).argsort(-1)[..., :top_k].astype(np.int16)
    return RoutingTrace(
        str(seed),
        np.arange(tokens, dtype=np.int32),
        experts,
        np.full(experts.shape, 0.5, np.float16),
        np.arange(tokens) >= prompt,
    )


def machine(transfer_seconds: float) -> SimulatedMachine:
    return SimulatedMachine(LAYERS, EXPERTS, EXPERT_BYTES, COMPUTE, EmulatedSpeed(EXPERT_BYTES / transfer_seconds))


def test_with_everything_resident_a_token_takes_its_computing_time():
    trace = make_trace(20)
    simulator = Simulator(machine(0.7), LAYERS * EXPERTS, Contender(LRU()))
    simulator.run([trace])
    again = simulator.run([trace])
    assert again.seconds == pytest.approx(20 * COMPUTE.token(LAYERS, TOP_K))
    assert (again.hit_rate, again.stall_share, again.bytes_moved) == (1.0, 0.0, 0)


def test_demand_caching_stalls_for_what_the_wire_cannot_hide():
    """A slot for each expert a layer needs: all are missed, one after the other; the first is computed with while the
    second arrives.
    """
    run = Simulator(machine(0.7), TOP_K, Contender(LRU())).run([make_trace(10)])
    assert run.counters["misses"] == 10 * LAYERS * TOP_K
    assert run.bytes_moved == run.counters["misses"] * EXPERT_BYTES
    stalls = 10 * LAYERS * (0.7 + 0.2)
    assert run.counters["stall_seconds"] == pytest.approx(stalls)
    assert run.seconds == pytest.approx(10 * COMPUTE.token(LAYERS, TOP_K) + stalls)


@pytest.mark.parametrize("name", ["lru", "lru-per-layer", "lfu"])
@pytest.mark.parametrize("slots", [4, 9, 16])
def test_misses_are_those_of_the_replay_without_a_clock(name, slots):
    trace = make_trace(40)
    run = Simulator(machine(0.3), slots, Contender(make_policy(name, LAYERS))).run([trace])
    policy = make_policy(name, LAYERS)
    policy.resized(slots)
    assert run.counters["misses"] == replay(decoded_steps([trace]), slots, policy).misses


def test_the_clairvoyant_waits_less_for_few_more_bytes():
    traces = [make_trace(60, seed) for seed in range(3)]
    plain = Simulator(machine(0.4), 12, Contender(layer_lru(LAYERS))).run(traces)
    foreseen = Simulator(machine(0.4), 12, make_contender("clairvoyant", traces, SHAPE)).run(traces)
    assert foreseen.counters["stall_seconds"] < 0.5 * plain.counters["stall_seconds"]
    assert foreseen.bytes_moved < 1.25 * plain.bytes_moved
    assert foreseen.counters["bytes_prefetch_used"] > foreseen.counters["bytes_demand"]


def test_who_knows_more_of_the_future_waits_less():
    traces = [make_trace(60, seed) for seed in range(3)]
    waited = []
    for name in ("predictive", "predictive:next", "predictive:this", "predictive:this+next"):
        simulator = Simulator(machine(1.0), 12, make_contender(name, traces, SHAPE))
        simulator.run(traces)
        waited.append(simulator.run(traces).counters["stall_seconds"])
    assert sorted(waited, reverse=True) == waited and len(set(waited)) == 4


def test_known_reuse_is_that_of_the_conversation_being_replayed():
    traces = [make_trace(6, seed) for seed in range(2)]
    oracle = Oracle(SHAPE, traces)
    reuse = KnownReuse(SHAPE, traces, oracle)
    oracle.begin()
    oracle.begin()
    oracle.read(traces[1].rows(0, 2))
    said = reuse(np.zeros(0), np.zeros((LAYERS, EXPERTS)))
    assert (np.flatnonzero(said[0] == 1) == np.sort(traces[1].experts[4, 0])).all()
    oracle.read(traces[1].rows(2, 5))
    assert not reuse(np.zeros(0), np.zeros((LAYERS, EXPERTS))).any()


def test_what_is_known_is_named():
    with pytest.raises(InvalidSetting, match="does not say what is known"):
        make_contender("predictive:everything", [make_trace(5)], SHAPE)


def test_predicting_takes_its_time_and_only_where_it_is_done():
    compute = ComputeTimes.of_token(8.0, LAYERS, TOP_K, predicting=2.0)
    assert compute.token(LAYERS, TOP_K) == pytest.approx(8.0)
    assert compute.predicting_token + LAYERS * compute.predicting_layer == pytest.approx(2.0)
    traces = [make_trace(20)]
    no_wire = SimulatedMachine(LAYERS, EXPERTS, EXPERT_BYTES, compute, EmulatedSpeed(EXPERT_BYTES * 1e9))
    for name, slots, seconds in (("lru", 12, 8.0), ("clairvoyant", 12, 10.0), ("clairvoyant", LAYERS * EXPERTS, 8.0)):
        simulator = Simulator(no_wire, slots, make_contender(name, traces, SHAPE))
        simulator.run(traces)
        assert simulator.run(traces).seconds == pytest.approx(20 * seconds, rel=1e-4), name


@settings(max_examples=25)
@given(st.integers(2, LAYERS * EXPERTS), st.floats(0.05, 3.0), st.integers(0, 100))
def test_no_schedule_beats_the_bounds(slots, transfer_seconds, seed):
    trace = make_trace(25, seed)
    run = Simulator(machine(transfer_seconds), slots, make_contender("clairvoyant", [trace], SHAPE)).run([trace])
    assert run.seconds >= run.tokens * COMPUTE.token(LAYERS, TOP_K) - 1e-6
    counted = run.counters
    assert (
        counted["hits"] + counted["late"] + counted["misses"] == counted["activations"] == run.tokens * LAYERS * TOP_K
    )
    moved_while_decoding = run.seconds / transfer_seconds * EXPERT_BYTES
    assert run.bytes_moved - slots * EXPERT_BYTES <= moved_while_decoding + EXPERT_BYTES


def test_a_prompt_costs_no_time_and_leaves_something_in_the_cache():
    run = Simulator(machine(0.5), LAYERS * EXPERTS, Contender(LRU())).run([make_trace(40, prompt=30)])
    assert run.tokens == 10
    assert run.hit_rate > 0.9


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(("top_k", "tolerance"), [(1, 0), (2, 0.02)])
def test_the_curve_is_what_replays_of_each_size_give(per_layer, top_k, tolerance):
    traces = [make_trace(30, seed, top_k=top_k) for seed in range(2)]
    curve = lru_curve(traces, LAYERS, EXPERTS, per_layer)
    for slots in range(LAYERS * top_k, LAYERS * EXPERTS + 1, LAYERS if per_layer else 1):
        policy = layer_lru(LAYERS) if per_layer else LRU()
        policy.resized(slots)
        replayed = replay(decoded_steps(traces), slots, policy)
        assert curve.activations == replayed.activations
        assert abs(curve.hit_rate(slots) - replayed.hit_rate) <= tolerance
    assert curve.hit_rate(10**6) == curve.hit_rate(LAYERS * EXPERTS)


@pytest.mark.parametrize("prompt", [0, 12])
def test_belady_is_the_least_any_demand_cache_moves(prompt):
    traces = [make_trace(50, seed, prompt) for seed in range(2)]
    belady = Simulator(machine(0.3), 10, make_contender("belady", traces, SHAPE)).run(traces)
    plain = Simulator(machine(0.3), 10, Contender(LRU())).run(traces)
    assert belady.counters["misses"] < plain.counters["misses"]


def test_an_unknown_policy_is_named():
    with pytest.raises(InvalidSetting, match="no policy called 'best'"):
        make_contender("best", [make_trace(2)], SHAPE)
