"""Replay of recorded routing through an eviction policy: what a cache of a given size would have moved.

The policies and the slot accounting are the engine's own. With `Belady` (farthest next use) the result is
the least that any demand cache of this size can move, which is what benchmarks compare an engine with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.cache.policies import Belady, EvictionPolicy
from engine.cache.residency import Residency
from engine.checkpoint.expert_key import ExpertKey
from engine.routing.traces.trace import RoutingTrace

Step = Sequence[tuple[int, Sequence[int]]]
"""One forward step: (layer, the distinct experts it needs) in the order of computation."""


@dataclass(frozen=True)
class Replay:
    """`hits + misses == activations`. `free_loads` are misses that a warm start would have spared."""

    activations: int
    hits: int
    misses: int
    free_loads: int

    @property
    def hit_rate(self) -> float:
        """Share of activations found resident; 0.0 when there were none."""
        return self.hits / self.activations if self.activations else 0.0

    @property
    def warm_misses(self) -> int:
        """Misses when the cache may begin with whatever content suits it best."""
        return self.misses - self.free_loads


def decoded_steps(traces: Iterable[RoutingTrace]) -> list[Step]:
    """The decoding steps among the rows of `traces`, in order; rows that prefill read are left out."""
    return [
        [(layer, chosen) for layer, experts in enumerate(row) if (chosen := tuple(e for e in experts if e >= 0))]
        for trace in traces
        for row in trace.experts[trace.decoded].tolist()
    ]


def replay(steps: Iterable[Step], slots: int, policy: EvictionPolicy) -> Replay:
    """Runs `steps` through a cache of `slots` slots that begins empty.

    The experts of a layer stay pinned while that layer computes; where they are more than the slots, those
    already computed give way (waves). Raises ValueError for less than one slot.
    """
    if slots < 1:
        raise ValueError(f"A cache needs at least one slot, not {slots}.")
    cache = _ReplayCache(slots, policy)
    for step in steps:
        for layer, experts in step:
            cache.compute([ExpertKey(layer, expert) for expert in experts])
        policy.step_ended()
    return Replay(cache.hits + cache.misses, cache.hits, cache.misses, cache.free_loads)


def replay_belady(steps: Sequence[Step], slots: int) -> Replay:
    """The fewest misses any demand cache of `slots` slots can have on `steps` (Belady 1966)."""
    future = [[ExpertKey(layer, expert) for expert in experts] for step in steps for layer, experts in step]
    return replay(steps, slots, Belady(future))


def belady_bytes(answers: Iterable[Sequence[Step]], slots: int, expert_bytes: int) -> int:
    """Bytes that decoding `answers` must move at least, whatever the policy.

    Each answer may begin with the content that suits it best, because the prompt before it passes nearly
    every expert through the cache and is not part of decoding.
    """
    return sum(replay_belady(steps, slots).warm_misses for steps in answers) * expert_bytes


class _ReplayCache:
    """Residency driven by demand alone; loads complete at once."""

    def __init__(self, slots: int, policy: EvictionPolicy) -> None:
        self.hits = self.misses = self.free_loads = 0
        self._policy = policy
        self._residency = Residency(policy)
        self._residency.add_slots(list(range(slots)))

    def compute(self, keys: list[ExpertKey]) -> None:
        residency = self._residency
        for key in keys:
            self._policy.used(key)
        pinned = [key for key in keys if residency.is_resident(key)]
        missing = [key for key in keys if not residency.is_resident(key)]
        for key in pinned:
            residency.pin(key)
        for key in missing:
            self.free_loads += residency.free_slots > 0
            if residency.reserve(key) is None:
                self._release(pinned)  # a wave ends: what it computed gives way to the next
                residency.reserve(key)
            residency.publish(key)
            residency.pin(key)
            pinned.append(key)
        self._release(pinned)
        residency.evicted.clear()
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)

    def _release(self, pinned: list[ExpertKey]) -> None:
        for key in pinned:
            self._residency.unpin(key)
        pinned.clear()
