"""How the routing of a token is told to a network: one number for each expert of each layer."""

from __future__ import annotations

import numpy as np

from engine.routing.traces.trace import NOBODY

USED = 0.5  # what being used counts beside the share of the weight, which may be next to nothing


def input_values(experts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float32, the shape of `experts`: USED plus the expert's share of the layer's weight, 0 for NOBODY.

    experts, weights: [..., layers, top k]. Shares, since families scale their weights differently.
    """
    chosen = experts != NOBODY
    positive = np.where(chosen, weights, 0).astype(np.float32)
    share = positive / np.maximum(positive.sum(-1, keepdims=True), np.float32(1e-6))
    return np.where(chosen, share + np.float32(USED), np.float32(0))


def dense_input(experts: np.ndarray, weights: np.ndarray, number: int) -> np.ndarray:
    """float32 [tokens, layers * number] with `input_values` at their experts' places."""
    spread = np.zeros((*experts.shape[:2], number + 1), np.float32)  # the last place takes NOBODY's zeros
    np.put_along_axis(spread, experts.astype(np.int64) % (number + 1), input_values(experts, weights), axis=-1)
    return spread[..., :number].reshape(len(experts), experts.shape[1] * number)


def sparse_input(experts: np.ndarray, weights: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """One token's places in [layers * number] and the values there; experts, weights: [layers, top k]."""
    chosen = experts != NOBODY
    places = experts + np.arange(len(experts), dtype=np.int64)[:, None] * number
    return places[chosen], input_values(experts, weights)[chosen]
