"""Products of stored matrices with one row for each of several chats, in one call for all matrices that are ready.

Ask `kernels.available()` before importing this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import get_num_threads

from engine.model.kernels.row_product import TILE, multiply_groups, reads


class SideBySide:
    """Stored matrices that read the same rows: their outputs stand side by side."""

    def __init__(self, *matrices: np.ndarray) -> None:
        """Each [features, in], contiguous, as `kernel_view` gives it, all of one dtype."""
        self._matrices = matrices  # their memory is read by address
        self.addresses = np.array([matrix.ctypes.data for matrix in matrices])
        self.features = np.array([len(matrix) for matrix in matrices])
        self.columns = np.cumsum(self.features) - self.features
        self._no_rows = self._all_rows = np.zeros(len(matrices), np.int64)
        self.stored = np.empty(0, matrices[0].dtype)

    def multiply(self, x: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
        """out [rows, all features] = every matrix times x [rows, in]; float32; `rows` counts up from 0."""
        if self._all_rows[0] != len(rows):
            self._all_rows = np.full(len(self._matrices), len(rows))
        _multiply(self.addresses, self.features, self.columns, self._no_rows, self._all_rows, self.stored, x, rows, out)


def multiply_experts(
    addresses: np.ndarray,
    features: int,
    rows: Sequence[slice],
    stored: np.ndarray,
    x: np.ndarray,
    tokens: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[p] = expert's matrix times x[tokens[p]] for each of the expert's `rows` p.

    addresses int64: of the experts' matrices [features, in], of the dtype of `stored`, which is
    empty; x and out float32, tokens int64.
    """
    same = np.full(len(addresses), features)
    firsts, lasts = (np.array([getattr(chosen, name) for chosen in rows]) for name in ("start", "stop"))
    _multiply(addresses, same, np.zeros_like(same), firsts, lasts, stored, x, tokens, out)


def _multiply(*arguments: Any) -> None:
    multiply_groups(*arguments, get_num_threads(), np.zeros(1, np.int64))


def unsuitable(matrix: np.ndarray) -> str | None:
    """None when these products can read a stored matrix [features, in], else the reason in words."""
    if len(matrix) < TILE:
        return f"a matrix has {len(matrix)} outputs, fewer than a tile"
    return None if reads(matrix.dtype) else "this processor has no instruction that reads fp16"
