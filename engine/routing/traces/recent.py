"""The newest decoded tokens' routing, always at hand: what the what-if curve is drawn from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.routing.passes import PassListener
from engine.routing.traces.trace import NOBODY, RoutingTrace

KEPT_TOKENS = 512


class RecentRouting:
    """The experts of the last decoding steps in a ring, whichever chat they were of. Read from any thread."""

    def __init__(self, experts_per_layer: Sequence[int], top_k: int, kept: int = KEPT_TOKENS) -> None:
        layers = len(experts_per_layer)
        self._lock = threading.Lock()
        self._experts = np.array(experts_per_layer, np.int16)[:, None]
        self._ring = np.full((kept, layers, top_k), NOBODY, np.int16)
        self.tokens = 0
        """Decoded since load."""

    def listener(self) -> PassListener:
        """What one chat's passes are told to."""
        return _RecentTokens(self._put, self._ring.shape[1:])

    def trace(self) -> RoutingTrace:
        """What is kept, oldest first, as one conversation of decoded tokens without ids."""
        with self._lock:
            count, kept = min(self.tokens, len(self._ring)), len(self._ring)
            rows = np.arange(self.tokens - count, self.tokens) % kept
            experts = self._ring[rows]
        experts[experts >= self._experts] = NOBODY
        weights = np.zeros(experts.shape, np.float16)
        return RoutingTrace("recent", np.zeros(count, np.int32), experts, weights, np.ones(count, bool))

    def _put(self, row: np.ndarray) -> None:
        with self._lock:
            self._ring[self.tokens % len(self._ring)] = row
            self.tokens += 1


class _RecentTokens:
    """A PassListener: the token of one chat that is being read."""

    def __init__(self, put: Callable[[np.ndarray], None], shape: tuple[int, ...]) -> None:
        self._put = put
        self._row = np.full(shape, NOBODY, np.int16)
        self._decoding = False

    def kept(self, common: int, kept: int, total: int) -> None:
        """Another prompt: the ring goes on."""

    def begin_pass(self, position: int, ids: Sequence[int], decoded: bool) -> None:
        self._decoding = decoded

    def observed(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        if self._decoding:
            chosen = top_k_index.tolist()[0]  # quicker than any conversion of so few
            self._row[layer, : len(chosen)] = chosen

    def final_hidden(self, hidden: Any) -> None:
        """Not kept."""

    def end_pass(self) -> None:
        if self._decoding:
            self._put(self._row)

    def drop_pass(self) -> None:
        """The step left no row."""
