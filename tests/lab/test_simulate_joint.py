"""Simulated joint passes: which rows they read, the arithmetic of one wire, and that foreseeing them pays."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cache.timed_transfers import EmulatedSpeed
from engine.errors import InvalidSetting
from engine.lab.simulation import simulate_pools
from engine.lab.simulation.compute_times import ComputeTimes
from engine.lab.simulation.joint_contenders import JOINT_NAMES, make_joint_contender
from engine.lab.simulation.joint_passes import joint_passes
from engine.lab.simulation.simulate import SimulatedMachine
from engine.lab.simulation.simulate_joint import FURTHER_ROW, JointSimulator
from engine.lab.simulation.simulate_traces import SimulationSettings
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.shape import RoutingShape
from tests.routing.synthetic import conversations

SHAPE = RoutingShape(layers=6, experts=8, top_k=2, vocabulary=24)
EXPERT_BYTES = 1 << 20
COMPUTE = ComputeTimes(before_routing=1.0, beside_experts=0.0, expert=0.5, after_layers=2.0)


def machine(transfer_seconds: float) -> SimulatedMachine:
    speed = EmulatedSpeed(EXPERT_BYTES / transfer_seconds)
    return SimulatedMachine(SHAPE.layers, SHAPE.experts, EXPERT_BYTES, COMPUTE, speed)


def simulate(name, passes, slots, transfer_seconds=0.6):
    simulator = JointSimulator(machine(transfer_seconds), slots, make_joint_contender(name, passes, SHAPE))
    return simulator.run(passes)


def test_places_go_from_one_conversation_to_the_next():
    traces = conversations(5, tokens=8)
    passes = list(joint_passes(traces, chats=2, passes=100))
    assert (passes[0].experts[0] == traces[0].experts[0]).all()
    assert (passes[0].experts[1] == traces[1].experts[2]).all()  # apart, so that they do not end together
    assert (passes[8].experts[0] == traces[3].experts[0]).all()
    assert len(passes) == 16 and passes[0].ahead is None and passes[0].expected is None
    with pytest.raises(InvalidSetting, match="too few to decode 6"):
        next(joint_passes(traces, chats=6, passes=1))


class SaysItsToken(RoutingPredictor):
    """In place of probabilities."""

    def begin(self) -> None:
        self.tokens = 0

    def read(self, rows) -> None:
        raise AssertionError("nothing was computed elsewhere")

    def predict(self, token_id):
        return np.full((self.horizon, self.shape.layers, self.shape.experts), token_id + 100 * self.tokens, np.float32)

    def observed(self, experts, weights, hidden) -> None:
        self.tokens += 1


def test_each_chats_predictor_is_asked_about_its_own_tokens():
    traces = conversations(4, tokens=10)
    passes = list(joint_passes(traces, 2, 4, lambda: SaysItsToken(SHAPE, 2)))
    for number, one in enumerate(passes):
        assert one.expected.shape == (2, 2, SHAPE.layers, SHAPE.experts)
        tokens = one.expected[:, 0, 0, 0] - 100 * number
        assert tokens.tolist() == [traces[0].token_ids[number], traces[1].token_ids[2 + number]]


def test_with_everything_resident_a_pass_takes_its_computing_time():
    passes = list(joint_passes(conversations(6, tokens=20), 4, 12))
    simulator = JointSimulator(machine(0.7), SHAPE.outputs, make_joint_contender("lru", passes, SHAPE))
    simulator.run(passes)
    again = simulator.run(passes)
    several = 1 + 3 * FURTHER_ROW
    experts = sum(
        1 + FURTHER_ROW * (rows - 1)
        for one in passes
        for layer in range(SHAPE.layers)
        for rows in np.unique(one.experts[:, layer], return_counts=True)[1]
    )
    computing = 12 * several * (SHAPE.layers * COMPUTE.before_routing + COMPUTE.after_layers)
    assert again.seconds == pytest.approx(computing + COMPUTE.expert * experts)
    assert (again.tokens, again.stall_share, again.bytes_moved) == (48, 0.0, 0)


@pytest.mark.parametrize("name", JOINT_NAMES)
def test_every_contender_computes_every_activation(name):
    passes = list(joint_passes(conversations(6, tokens=24, distances=2), 4, 20))
    run = simulate(name, passes, slots=14)
    counted = run.counters
    needed = sum(len(one.distinct(layer)) for one in passes for layer in range(SHAPE.layers))
    assert counted["hits"] + counted["late"] + counted["misses"] == counted["activations"] == needed
    assert run.seconds * machine(0.6).speed.bytes_per_second >= run.bytes_moved - 14 * EXPERT_BYTES


def test_foreseen_passes_wait_less_than_plain_ones_and_bounds_hold():
    passes = list(joint_passes(conversations(10, tokens=50, distances=2), 4, 50))
    runs = {
        name: simulate(name, passes, slots=16)
        for name in ("lru", "lru-per-layer", "predictive", "belady", "clairvoyant")
    }
    assert runs["predictive"].seconds < 0.97 * min(runs["lru"].seconds, runs["lru-per-layer"].seconds)
    assert runs["predictive"].bytes_moved < 1.05 * runs["lru-per-layer"].bytes_moved
    assert runs["belady"].bytes_moved < runs["lru-per-layer"].bytes_moved
    assert runs["clairvoyant"].seconds < runs["predictive"].seconds


def test_an_unknown_policy_is_named():
    passes = list(joint_passes(conversations(2, tokens=8), 2, 2))
    with pytest.raises(InvalidSetting, match="no policy called 'best'"):
        make_joint_contender("best", passes, SHAPE)


def test_pools_are_reported_by_chats_budget_and_policy(monkeypatch):
    monkeypatch.setattr(simulate_pools, "WARM_UP", 4)
    monkeypatch.setattr(simulate_pools, "COUNTED", 8)
    settings = SimulationSettings((0.25,), ("stall:50%",), ("lru-per-layer", "predictive"), 1.0, EXPERT_BYTES)
    told = []
    report = simulate_pools.simulate_pools(
        conversations(6, tokens=20, distances=2), SHAPE, (2, 4), settings, None, lambda *step: told.append(step)
    )
    assert [(run["chats"], run["policy"]) for run in report["runs"]] == [
        (chats, policy) for chats in (2, 4) for policy in settings.policies
    ]
    assert all(abs(run["stall_share"] - 0.5) < 0.05 for run in report["runs"] if run["policy"] == "lru-per-layer")
    assert [run["tokens"] for run in report["runs"]] == [16, 16, 32, 32]
    assert told[-1][1:] == (4, 4)
    foretold = SimulationSettings((0.25,), ("emulated:1GBps",), (simulate_pools.FORETOLD,), 1.0, EXPERT_BYTES)
    with pytest.raises(InvalidSetting, match="needs a trained predictor"):
        simulate_pools.simulate_pools(conversations(4), SHAPE, (2,), foretold, None, print)


def test_numbers_of_chats_are_read_or_refused():
    assert simulate_pools.read_chats("4, 8") == (4, 8)
    for wrong in ("", "0", "4,x", "-1"):
        with pytest.raises(InvalidSetting, match="not numbers of chats"):
            simulate_pools.read_chats(wrong)
