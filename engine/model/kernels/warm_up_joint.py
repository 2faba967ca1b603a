"""Compiling the kernels that read a token of each of several chats."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.model.kernels.activation import SILU
from engine.model.kernels.joint_attention import add_rows, joint_attention, norm_rows
from engine.model.kernels.joint_experts import add_combined, add_scaled, gate_rows, route_rows
from engine.model.kernels.row_product import TILE, multiply_groups, reads


def joint_steps(*dtypes: np.dtype) -> list[Callable[[], object]]:
    """Each runs one kernel on arrays of the types that it will be given; `dtypes`: kernel dtypes of stored weights."""
    one, matrix = np.ones(1, np.float32), np.ones((1, 1), np.float32)
    ids, shares = np.zeros((1, 1), np.int64), matrix.copy()
    products = [lambda dtype=dtype: _multiply(np.zeros((TILE, 1), dtype)) for dtype in set(dtypes) if reads(dtype)]
    return [
        *products,
        _attend,
        lambda: norm_rows(matrix, one, 1e-6, matrix.copy()),
        lambda: add_rows(matrix.copy(), matrix.copy(), one),
        lambda: route_rows(matrix, one, 1e-6, matrix, True, matrix.copy(), matrix.copy(), ids.copy(), shares.copy()),
        lambda: gate_rows(SILU, np.ones((1, 2), np.float32), np.zeros(1, np.int64), matrix.copy()),
        lambda: add_combined(matrix.copy(), matrix, ids, shares),
        lambda: add_scaled(matrix.copy(), matrix, one, matrix),
    ]


def _multiply(weight):
    zero, x, out = np.zeros(1, np.int64), np.ones((1, 1), np.float32), np.empty((1, TILE), np.float32)
    one_row = np.ones(1, np.int64)
    address, features = np.array([weight.ctypes.data]), np.array([TILE])
    multiply_groups(address, features, zero, zero, one_row, weight[0], x, zero, out, 1, zero.copy())


def _attend():
    none, angles, position = np.empty(0, np.float32), np.ones((1, 2), np.float32), np.zeros(1, np.int64)
    keys, values = np.zeros((2, 1, 1, 2), np.float32)
    addresses = (np.array([array.ctypes.data]) for array in (keys, values))
    projected, attended = np.ones((1, 6), np.float32), np.empty((1, 1, 2), np.float32)
    settings = none, none, none, none, none, 1e-6, np.float32(1), 1
    chat = *addresses, np.ones(1, np.int64), position, angles, angles
    joint_attention(*settings, *chat, projected, attended, 1, np.zeros(1, np.int64))
