"""Matrices kept in eight bits.

While a model computes, nothing of a predictor stays in the processor's caches: its matrices are read from memory for
every token, and their size is what a prediction costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """values: int8 [rows, n]; scales: float32 [rows]. Row r stands for scales[r] * values[r]."""

    values: np.ndarray
    scales: np.ndarray

    def widened(self) -> np.ndarray:
        """float32 [rows, n]."""
        return self.values * self.scales[:, None]


def to_int8(matrix: np.ndarray) -> Int8Rows:
    """The nearest: off by no more than a 254th of the row's largest number."""
    largest = np.abs(matrix).max(1, initial=0.0)
    scales = np.maximum(largest / 127, 1e-12).astype(np.float32)
    return Int8Rows(np.rint(matrix / scales[:, None]).astype(np.int8), scales)
