"""What a group of tokens costs: how many distinct experts it touches, and how many of them must be fetched."""

from __future__ import annotations

import numpy as np


def distinct_experts(paths: np.ndarray) -> int:
    """Experts that any row uses. paths: bool or 0/1, [tokens, layers * experts]."""
    return int(np.any(paths, axis=0).sum())


def expected_new(paths: np.ndarray, absent: np.ndarray) -> float:
    """Experts that the rows together are expected to use, of those that are not there.

    paths: float32 [tokens, layers * experts], probabilities; absent: float32 [layers * experts], 1 where not resident.
    """
    return float(((1 - np.prod(1 - paths, axis=0)) * absent).sum())


def most_likely(paths: np.ndarray, top_k: int) -> np.ndarray:
    """bool [tokens, layers, experts]: each layer's `top_k` likeliest, none of probability 0.

    paths: float32 of the same shape.
    """
    if top_k >= paths.shape[-1]:
        return paths > 0
    threshold = np.partition(paths, -top_k, axis=-1)[..., -top_k, None]
    return (paths >= threshold) & (paths > 0)
