"""Matrices kept in eight bits that meet vectors: in the compiled kernels, or in numpy where they cannot run.

While a model computes, nothing of a predictor stays in the processor's caches: its matrices are read from memory for
every token, and their size is what a prediction costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.model import kernels


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


class StoredMatrix:
    """[outputs, inputs] times a vector."""

    def __init__(self, rows: Int8Rows) -> None:
        self._rows = rows
        self._out = np.empty(len(rows.values), np.float32)
        self._compiled = kernels.available()
        if self._compiled:
            from engine.model.kernels.int8_product import int8_matvec

            self._matvec = int8_matvec
        else:
            self._widened = rows.widened()

    def times(self, x: np.ndarray) -> np.ndarray:
        """float32 [outputs], overwritten by the next call; x: float32 [inputs]."""
        if self._compiled:
            kernels.use_torch_threads()
            self._matvec(self._rows.values, self._rows.scales, x, self._out)
        else:
            np.dot(self._widened, x, out=self._out)
        return self._out


class StoredRows:
    """[inputs, outputs], for inputs that are zero nearly everywhere: only the rows that count are read."""

    def __init__(self, rows: Int8Rows) -> None:
        self._rows = rows
        self._compiled = kernels.available()
        if self._compiled:
            from engine.model.kernels.int8_product import int8_add_rows

            self._add_rows = int8_add_rows

    def add(self, places: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
        """out += sum of values[i] * row places[i]; places: int64, values and out: float32."""
        if self._compiled:
            self._add_rows(self._rows.values, self._rows.scales, places, values, out)
        else:
            out += (values * self._rows.scales[places]) @ self._rows.values[places]
