"""One cache, one link, one pool of chats: what decoding them together would have cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.cache.expert_cache import ExpertCache
from engine.lab.simulation.joint_contenders import JointContender
from engine.lab.simulation.joint_passes import JointPass
from engine.lab.simulation.simulate import SimulatedMachine, SimulatedRun
from engine.lab.simulation.virtual_transfers import VirtualLink, VirtualTransfers

FURTHER_ROW = 0.1  # of what the first row costs: weights are read once for all rows


class JointSimulator:
    """The engine's cache, policies and prefetcher over virtual transfers; keeps its content between runs."""

    def __init__(self, machine: SimulatedMachine, slots: int, contender: JointContender) -> None:
        self._machine = machine
        self._made: list[VirtualTransfers] = []
        self._cache = ExpertCache(
            VirtualLink(machine.expert_bytes, machine.speed),
            contender.eviction,
            [machine.experts] * machine.layers,
            slots,
            make_transfers=self._make_transfers,
            prefetcher=contender.prefetcher,
            waves=contender.waves,
        )
        self._transfers = self._made[0]

    def run(self, passes: Sequence[JointPass]) -> SimulatedRun:
        """Counts this call alone; tokens are those of all chats."""
        before, began = self._cache.counters(), self._transfers.now()
        for one in passes:
            self._pass(one)
        after, seconds = self._cache.counters(), self._transfers.now() - began
        tokens = sum(one.chats for one in passes)
        return SimulatedRun(tokens, seconds, {name: after[name] - before[name] for name in after})

    def _pass(self, one: JointPass) -> None:
        compute, cache, several = self._machine.compute, self._cache, _rows_cost(one.chats)
        cache.begin_joint_step(one.expected)
        for layer in range(self._machine.layers):
            self._transfers.advance(compute.before_routing * several)
            chosen, weights = one.experts[:, layer], one.weights[:, layer]
            rows_of = np.bincount(chosen[chosen >= 0], minlength=self._machine.experts)
            cache.observe(layer, None if one.ahead is None else one.ahead[:, layer], chosen, weights)
            with cache.acquire(layer, one.distinct(layer)) as lease:
                self._transfers.advance(compute.beside_experts * several)
                while batch := lease.next_batch():
                    rows = sum(_rows_cost(int(rows_of[expert])) for expert, _ in batch)
                    self._transfers.advance(compute.expert * rows)
        self._transfers.advance(compute.after_layers * several)
        cache.step_ended()

    def _make_transfers(self, *arguments: Any) -> VirtualTransfers:
        self._made.append(VirtualTransfers(*arguments))
        return self._made[0]


def _rows_cost(rows: int) -> float:
    """In rows that are computed alone."""
    return 1 + FURTHER_ROW * (rows - 1)
