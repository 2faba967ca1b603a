"""One cache, one link, one trace: what decoding would have cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.cache.expert_cache import ExpertCache
from engine.cache.links.emulated import EmulatedSpeed
from engine.cache.policies import EvictionPolicy
from engine.checkpoint.expert_key import ExpertKey
from engine.lab.simulation.compute_times import ComputeTimes
from engine.lab.simulation.virtual_transfers import VirtualLink, VirtualTransfers
from engine.routing.prefetcher import Prefetcher
from engine.routing.traces.trace import NOBODY, RoutingTrace


@dataclass(frozen=True)
class SimulatedMachine:
    """What is simulated besides the cache: the model's shape, the computation's pace and the link."""

    layers: int
    experts: int
    expert_bytes: int
    compute: ComputeTimes
    speed: EmulatedSpeed


@dataclass(frozen=True)
class SimulatedRun:
    """Sums over all decoded tokens of a trace, in virtual seconds; `counters` as in EngineStats."""

    tokens: int
    seconds: float
    counters: dict[str, Any]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def stall_share(self) -> float:
        """Of all time, the part in which the computation waited for a transfer."""
        return float(self.counters["stall_seconds"]) / self.seconds if self.seconds else 0.0

    @property
    def hit_rate(self) -> float:
        return float(self.counters["hits"]) / max(self.counters["activations"], 1)

    @property
    def bytes_moved(self) -> int:
        names = ("bytes_demand", "bytes_correction", "bytes_prefetch_used", "bytes_prefetch_wasted")
        return sum(self.counters[name] for name in names) + int(self.counters["bytes_prefetch_pending"])


class Simulator:
    """The engine's cache, policies and prefetcher over virtual transfers; keeps its content between traces."""

    def __init__(
        self, machine: SimulatedMachine, slots: int, policy: EvictionPolicy, prefetcher: Prefetcher | None = None
    ) -> None:
        self._machine = machine
        self._made: list[VirtualTransfers] = []
        self._prefetcher = prefetcher
        self._cache = ExpertCache(
            VirtualLink(machine.expert_bytes, machine.speed),
            policy,
            [machine.experts] * machine.layers,
            slots,
            make_transfers=self._make_transfers,
            prefetcher=prefetcher,
        )
        self._transfers = self._made[0]

    def run(self, traces: Iterable[RoutingTrace]) -> SimulatedRun:
        """Decodes the decoded positions of `traces`, having read the others as prompts. Counts this call alone."""
        tokens, seconds, before = 0, 0.0, self._cache.counters()
        for trace in traces:
            for start, stop in _runs(trace.decoded):
                if not trace.decoded[start]:
                    self._prefill(trace.rows(start, stop))
                    continue
                began = self._transfers.now()
                for row in range(start, stop):
                    self._step(trace, row)
                seconds += self._transfers.now() - began
                tokens += stop - start
        after = self._cache.counters()
        return SimulatedRun(tokens, seconds, {name: after[name] - before[name] for name in after})

    def _step(self, trace: RoutingTrace, row: int) -> None:
        compute, cache = self._machine.compute, self._cache
        cache.begin_step(int(trace.token_ids[row]))
        for layer, chosen in enumerate(trace.experts[row]):
            self._transfers.advance(compute.before_routing)
            ahead = None if trace.ahead is None else trace.ahead[row, layer]
            cache.observe(layer, ahead, chosen[None], trace.weights[row, layer][None])
            with cache.acquire(layer, _distinct(chosen)) as lease:
                self._transfers.advance(compute.beside_experts)
                while batch := lease.next_batch():
                    self._transfers.advance(compute.expert * len(batch))
        self._transfers.advance(compute.after_layers)
        cache.step_ended()

    def _prefill(self, rows: RoutingTrace) -> None:
        """Takes no time and no stall: only what it leaves in the cache matters."""
        self._cache.begin_prefill(len(rows), rows.top_k)
        for layer in range(rows.layers):
            chosen = rows.experts[:, layer]
            self._cache.observe(layer, None, chosen, rows.weights[:, layer])
            with self._cache.acquire(layer, _distinct(chosen)) as lease:
                while lease.next_batch():
                    pass
        self._cache.begin_decode()

    def _make_transfers(self, *arguments: Any) -> VirtualTransfers:
        self._made.append(VirtualTransfers(*arguments))
        return self._made[0]


def acquisitions(traces: Iterable[RoutingTrace]) -> Iterator[list[ExpertKey]]:
    """What `Simulator.run` asks the cache for, in order: a layer's experts at a time."""
    for trace in traces:
        for start, stop in _runs(trace.decoded):
            passes = [(row, row + 1) for row in range(start, stop)] if trace.decoded[start] else [(start, stop)]
            for first, last in passes:
                for layer in range(trace.layers):
                    yield [ExpertKey(layer, expert) for expert in _distinct(trace.experts[first:last, layer])]


def _distinct(chosen: np.ndarray) -> list[int]:
    """In the order of their first appearance, as the engine asks for them."""
    return list(dict.fromkeys(chosen[chosen != NOBODY].tolist()))


def _runs(decoded: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of each run of equal values."""
    if not len(decoded):
        return []
    borders = np.flatnonzero(np.diff(decoded)) + 1
    edges = [0, *borders.tolist(), len(decoded)]
    return list(zip(edges[:-1], edges[1:], strict=True))
