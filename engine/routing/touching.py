"""Experts that any of several rows uses: their probabilities, and in which order a pass will come to them."""

from __future__ import annotations

import numpy as np

from engine.model import kernels
from engine.routing.logistic import logit, sigmoid


def touched_by_any(by_row: np.ndarray) -> np.ndarray:
    """float32 [...]: the probability that at least one row uses the expert; by_row float32 [rows, ...]."""
    return 1 - np.prod(1 - by_row, axis=0, dtype=np.float32)


def blend_rows_by_numpy(
    ahead: np.ndarray,
    stage1: np.ndarray,
    coefficients: np.ndarray,
    top_k: np.float32,
    most_certain: np.float32,
    touched: np.ndarray,
) -> None:
    """Fills float32 `touched` [distances, experts] with the probability that any row uses the expert.

    ahead: float32 [rows, distances, experts], router probabilities; stage1: [rows or 1, distances, experts];
    coefficients: [distances, 3], as Blend has them. A row uses `top_k` experts of each layer: its probabilities are
    scaled to that sum, each no larger than `most_certain`.
    """
    a, b, c = coefficients.T[..., None]
    by_row = sigmoid(a * logit(stage1) + b * logit(ahead) + c)
    by_row *= top_k / by_row.sum(-1, keepdims=True)
    touched[:] = touched_by_any(np.minimum(by_row, most_certain))


def list_due_by_numpy(due: np.ndarray, absent: np.ndarray, first: int, least: np.float32, places: np.ndarray) -> int:
    """Fills int64 `places` with layer * experts + expert of what is at least `least` likely and has no slot; returns
    how many.

    due: float32 [layers, experts]; absent: float32 [layers * experts], 0 where there is a slot. Last come those of
    layer `first`, before them those of the layer after it, and so on around; of one layer the likeliest come last.
    """
    layers, experts = due.shape
    likely = np.flatnonzero((due.reshape(-1) >= least) & (absent != 0))[::-1]
    distance = (likely // experts - first) % layers
    order = np.lexsort((due.reshape(-1)[likely], -distance))
    kept = likely[order[max(len(likely) - len(places), 0) :]]
    places[: len(kept)] = kept
    return len(kept)


if kernels.available():
    from engine.model.kernels.touching import blend_rows, list_due
else:
    blend_rows, list_due = blend_rows_by_numpy, list_due_by_numpy
