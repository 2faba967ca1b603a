"""Compiling the kernels that read a token of each of several chats."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.model.kernels.activation import SILU
from engine.model.kernels.joint_attention import add_rows, joint_attention, norm_rows
from engine.model.kernels.joint_experts import add_combined, add_scaled, gate_rows, route_rows
from engine.model.kernels.row_product import TILE, multiply_groups, reads
from engine.model.kernels.run_joint_layers import POINTERS, run_joint_layers


def joint_steps(dense: np.dtype, experts: np.dtype | None) -> list[Callable[[], object]]:
    """Each runs one kernel on arrays of the types that it will be given; kernel dtypes of stored weights, without
    `experts` where they are stored in few bits.
    """
    one, matrix = np.ones(1, np.float32), np.ones((1, 1), np.float32)
    ids, shares = np.zeros((1, 1), np.int64), matrix.copy()
    dtypes = [dtype for dtype in {dense, experts} if dtype is not None and reads(dtype)]
    layers = [lambda: _run_no_layers(dense, experts)] if experts in dtypes and dense in dtypes else []
    return [
        *(lambda dtype=dtype: _multiply(np.zeros((TILE, 1), dtype)) for dtype in dtypes),
        *layers,
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


def _run_no_layers(dense, experts):
    matrix, cube = np.ones((1, 1), np.float32), np.ones((1, 1, 1), np.float32)
    numbers, table, ids = np.zeros(1, np.int64), np.zeros((1, 1), np.int64), np.zeros((1, 1, 1), np.int64)
    chats = table, table, numbers, numbers, matrix, matrix
    weights = np.zeros((0, POINTERS), np.int64), table, np.zeros((1, 3)), numbers, table, numbers, numbers
    stored = np.empty(0, dense), np.empty(0, experts), SILU, True, numbers
    scratch = numbers, matrix, matrix, cube, matrix, matrix, matrix, matrix, matrix, table
    run_joint_layers(0, matrix, *chats, table, *weights, *stored, cube, ids, cube, table, numbers, *scratch, 1)
