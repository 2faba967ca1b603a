"""Matrices kept in fp16 that meet vectors: in the compiled kernels, or in numpy where they cannot run."""

from __future__ import annotations

import numpy as np
import torch

from engine.model import kernels


class StoredMatrix:
    """fp16 [outputs, inputs] as it lies in a predictor's file."""

    def __init__(self, values: np.ndarray) -> None:
        self._out = np.empty((1, len(values)), np.float32)
        self._values = _readable(values)
        self._compiled = kernels.available()
        if self._compiled:
            from engine.model.kernels.matvec import matvec

            self._matvec = matvec

    def times(self, x: np.ndarray) -> np.ndarray:
        """float32 [outputs], overwritten by the next call; x: float32 [inputs]."""
        if self._compiled:
            kernels.use_torch_threads()
            self._matvec(self._values, x[None], self._out)
        else:
            np.dot(self._values, x, out=self._out[0])
        return self._out[0]


class StoredRows:
    """fp16 [inputs, outputs], for inputs that are zero nearly everywhere: only the rows that count are read."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = _readable(values)
        self._compiled = kernels.available()
        if self._compiled:
            from engine.model.kernels.row_sum import add_rows

            self._add_rows = add_rows

    def add(self, places: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
        """out += sum of values[i] * row places[i]; places: int64, values and out: float32."""
        if self._compiled:
            self._add_rows(self._values, places, values, out)
        else:
            out += values @ self._values[places]


def _readable(values: np.ndarray) -> np.ndarray:
    """As the kernels read it, or widened for numpy."""
    if not kernels.available():
        return values.astype(np.float32)
    from engine.model.kernels.storage import kernel_view

    return kernel_view(torch.from_numpy(np.ascontiguousarray(values, np.float16)))
