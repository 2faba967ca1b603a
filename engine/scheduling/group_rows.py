"""The real routing of the group that is being read, as the layers tell it: in one pass, or chat after chat."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.cache.expert_cache import RoutingListener
from engine.routing.traces.trace import NOBODY


class GroupRows:
    """Rows come in the order of the group's chats. What is told outside `begin` and `take` is not kept."""

    def __init__(self, layers: int, top_k: int) -> None:
        self._experts = np.empty((0, layers, top_k), np.int16)
        self._weights = np.empty((0, layers, top_k), np.float32)
        self._filled = np.zeros(layers, np.int64)
        self._rows = 0

    def begin(self, rows: int) -> None:
        """A group of so many tokens is about to be read."""
        self._rows = rows
        self._filled[:] = 0
        self._experts = np.full((rows, *self._experts.shape[1:]), NOBODY, np.int16)
        self._weights = np.zeros(self._experts.shape, np.float32)

    def observed(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        """As `ExpertCache.observe`."""
        if not self._rows:
            return
        start = int(self._filled[layer])
        stop = start + len(top_k_index)
        self._filled[layer] = stop
        if stop <= self._rows:
            index = np.asarray(top_k_index)
            self._experts[start:stop, layer, : index.shape[1]] = index
            self._weights[start:stop, layer, : index.shape[1]] = np.asarray(top_k_weights)

    def beside(self, other: RoutingListener) -> RoutingListener:
        """Both are told, `other` first."""

        def both(layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
            other(layer, hidden, top_k_index, top_k_weights)
            self.observed(layer, hidden, top_k_index, top_k_weights)

        return both

    def take(self) -> tuple[np.ndarray, np.ndarray] | None:
        """int16 and float32 [tokens, layers, top k]; None unless every layer told each row exactly once."""
        whole = bool(self._rows) and bool((self._filled == self._rows).all())
        self._rows = 0
        return (self._experts, self._weights) if whole else None
