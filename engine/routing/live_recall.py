"""How much of what is used was foreseen, by layer, while decoding."""

from __future__ import annotations

import numpy as np

MEMORY_TOKENS = 64.0  # a token so long ago counts half


class LiveRecall:
    """Share of the experts used that were among as many predicted ones, decayed over tokens."""

    def __init__(self, layers: int) -> None:
        self._keep = 2.0 ** (-1 / MEMORY_TOKENS)
        self._found = np.zeros(layers)
        self._used = np.zeros(layers)

    def count(self, predicted: np.ndarray, experts: np.ndarray) -> None:
        """predicted: [layers, experts] probabilities; experts: integers [layers, top k], negative for nobody."""
        top_k = experts.shape[1]
        threshold = np.partition(predicted, -top_k, axis=1)[:, -top_k, None]
        chances = np.take_along_axis(predicted, np.maximum(experts, 0).astype(np.int64), axis=1)
        used = experts >= 0
        self._found *= self._keep
        self._used *= self._keep
        self._found += (used & (chances >= threshold) & (chances > 0)).sum(1)
        self._used += used.sum(1)

    def by_layer(self) -> np.ndarray | None:
        """float64 [layers], 0 where nothing was predicted; None before the first token."""
        if not self._used.any():
            return None
        return self._found / np.maximum(self._used, 1e-9)
