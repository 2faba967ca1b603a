"""Hit rate against cache size for LRU, all sizes in one pass over the trace (Mattson et al. 1970)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine.lab.belady import decoded_steps
from engine.routing.traces.trace import RoutingTrace


@dataclass(frozen=True)
class LruCurve:
    """`hits[n]`: activations found in a cache of n slots; int64 [slots + 1], never falling."""

    activations: int
    hits: np.ndarray

    def hit_rate(self, slots: int) -> float:
        """0.0 when there were no activations; more slots than experts serve no better than all."""
        return float(self.hits[min(slots, len(self.hits) - 1)]) / self.activations if self.activations else 0.0


def lru_curve(traces: Iterable[RoutingTrace], layers: int, experts: int, per_layer: bool) -> LruCurve:
    """The curve of decoding `traces` one after the other from an empty cache: one LRU for all, or one per layer.

    An activation hits every cache larger than the number of distinct experts used since that expert's last use: its
    depth in the stack of all experts by recency. With one LRU per layer, slots are shared out evenly. Experts of one
    layer and token are used at the same moment; in which order they then stand is all that is approximate here.
    """
    depths = np.zeros(experts + 1 if per_layer else layers * experts + 1, np.int64)
    stacks: list[list[tuple[int, int]]] = [[] for _ in range(layers if per_layer else 1)]
    activations = 0
    for step in decoded_steps(traces):
        for layer, chosen in step:
            stack = stacks[layer if per_layer else 0]
            keys = [(layer, expert) for expert in chosen]
            activations += len(keys)
            known = [key for key in keys if key in stack]
            for depth in [stack.index(key) for key in known]:
                depths[depth + 1] += 1
            for key in known:
                stack.remove(key)
            stack[:0] = keys
    hits = np.cumsum(depths)
    if per_layer:  # n slots are n // layers in each layer
        hits = hits[np.arange(layers * experts + 1) // layers]
    return LruCurve(activations, hits)
