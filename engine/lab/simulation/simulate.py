"""One cache, one link, one trace: what decoding would have cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.cache.expert_cache import ExpertCache
from engine.cache.timed_transfers import EmulatedSpeed
from engine.lab.simulation.acquisitions import distinct, passes
from engine.lab.simulation.compute_times import ComputeTimes
from engine.lab.simulation.contenders import Contender, RecordedView
from engine.lab.simulation.virtual_transfers import VirtualLink, VirtualTransfers
from engine.routing.readout import tap_layers
from engine.routing.traces.trace import RoutingTrace


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

    def facts(self) -> dict[str, Any]:
        """What every report says of a run."""
        return {
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "hit_rate": self.hit_rate,
            "late_rate": self.counters["late"] / max(self.counters["activations"], 1),
            "stall_share": self.stall_share,
            "bytes_per_token": self.bytes_moved / max(self.tokens, 1),
            "bytes_prefetch_wasted": self.counters["bytes_prefetch_wasted"],
        }


class Simulator:
    """The engine's cache, policies and prefetcher over virtual transfers; keeps its content between traces."""

    def __init__(self, machine: SimulatedMachine, slots: int, contender: Contender) -> None:
        self._machine, self._contender = machine, contender
        self._made: list[VirtualTransfers] = []
        self._cache = ExpertCache(
            VirtualLink(machine.expert_bytes, machine.speed),
            contender.eviction,
            [machine.experts] * machine.layers,
            slots,
            make_transfers=self._make_transfers,
            prefetcher=contender.prefetcher,
        )
        self._transfers = self._made[0]

    def run(self, traces: Iterable[RoutingTrace]) -> SimulatedRun:
        """Decodes the decoded positions of `traces`, having read the others as prompts. Counts this call alone."""
        tokens, seconds, before = 0, 0.0, self._cache.counters()
        predictor = self._contender.predictor
        for trace in traces:
            if predictor is not None:
                predictor.begin()
            for start, stop in passes(trace):
                if not trace.decoded[start]:
                    self._prefill(trace.rows(start, stop))
                    continue
                began = self._transfers.now()
                self._step(trace, start)
                seconds += self._transfers.now() - began
                tokens += 1
        after = self._cache.counters()
        return SimulatedRun(tokens, seconds, {name: after[name] - before[name] for name in after})

    def _step(self, trace: RoutingTrace, row: int) -> None:
        compute, cache, forecast = self._machine.compute, self._cache, self._contender.forecast
        taps = tap_layers(trace.layers)
        predicts = cache.foresees
        self._transfers.advance(predicts * compute.predicting_token)
        cache.begin_step(int(trace.token_ids[row]))
        for layer, chosen in enumerate(trace.experts[row]):
            self._transfers.advance(compute.before_routing + predicts * compute.predicting_layer)
            cache.observe(layer, _view(trace, row, layer, taps), chosen[None], trace.weights[row, layer][None])
            with cache.acquire(layer, distinct(chosen)) as lease:
                self._transfers.advance(compute.beside_experts)
                while batch := lease.next_batch():
                    self._transfers.advance(compute.expert * len(batch))
        self._transfers.advance(compute.after_layers)
        if forecast is not None:
            forecast.hidden = None if trace.hidden is None else trace.hidden[row]
        cache.step_ended()

    def _prefill(self, rows: RoutingTrace) -> None:
        """Takes no time and no stall: only what it leaves in the cache, and with the predictor, matters."""
        if self._contender.predictor is not None:
            self._contender.predictor.read(rows)
        self._cache.begin_prefill(len(rows), rows.top_k)
        for layer in range(rows.layers):
            chosen = rows.experts[:, layer]
            self._cache.observe(layer, None, chosen, rows.weights[:, layer])
            with self._cache.acquire(layer, distinct(chosen)) as lease:
                while lease.next_batch():
                    pass
        self._cache.begin_decode()

    def _make_transfers(self, *arguments: Any) -> VirtualTransfers:
        self._made.append(VirtualTransfers(*arguments))
        return self._made[0]


def _view(trace: RoutingTrace, row: int, layer: int, taps: Sequence[int]) -> RecordedView:
    """What the router of `layer` would have told the forecast."""
    ahead = None if trace.ahead is None else trace.ahead[row, layer]
    tapped = trace.midway is not None and layer in taps
    return RecordedView(ahead, trace.midway[row, taps.index(layer)] if tapped and trace.midway is not None else None)
