"""Compiling the kernels a model will need before its first token asks for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from engine.model.kernels.activation import SILU, silu_gate
from engine.model.kernels.decode_kernels import DecodeKernels
from engine.model.kernels.routing import combine
from engine.model.kernels.storage import kernel_view

STAGE = "Compiling the decoding kernels (first start only)"
Progress = Callable[[str, int, int], None]


def warm_up(dense: torch.dtype, experts: torch.dtype | None = None, on_progress: Progress | None = None) -> None:
    """Compiles, or loads what an earlier start compiled, for weights stored in these dtypes.

    Without `experts` the fast path's own kernels are left out.
    """
    steps = _steps(DecodeKernels(), _stored(dense), None if experts is None else _stored(experts))
    for done, step in enumerate(steps):
        if on_progress:
            on_progress(STAGE, done, len(steps))
        step()
    if on_progress:
        on_progress(STAGE, len(steps), len(steps))


def _steps(kernels: DecodeKernels, dense: np.ndarray, experts: np.ndarray | None) -> list[Callable[[], object]]:
    """Each kernel on arrays of ones, of the types that it will be given."""
    one = np.ones(1, np.float32)
    matrix, cube = np.ones((1, 1), np.float32), np.ones((1, 1, 1), np.float32)
    indices = np.zeros(1, np.int64)
    steps: list[Callable[[], object]] = [
        lambda: kernels.matvec(dense, matrix, matrix.copy()),
        lambda: silu_gate(np.ones((1, 2), np.float32), matrix.copy()),
        lambda: combine(matrix, indices[None], matrix, matrix.copy()),
    ]
    if experts is None:
        return steps
    slot = np.ascontiguousarray(np.tile(experts.reshape(1, 1), (3, 1)))  # gate, up and down of one number each
    addresses = np.array([slot.ctypes.data], np.int64)
    down_offset = 2 * slot.itemsize
    attention = [one, 1e-6, dense, dense, dense, dense, *[np.empty(0, np.float32)] * 6, np.float32(1), 1]
    attention += [cube.copy(), cube.copy(), 0, one, one, one.copy(), one.copy(), matrix.copy(), matrix.copy()]
    attention += [matrix.copy(), matrix.copy(), matrix.copy(), cube.copy()]
    return steps + [
        lambda: kernels.attention_block(*attention),
        lambda: kernels.route(one, one, 1e-6, matrix, True, one.copy(), one.copy(), indices.copy(), one.copy()),
        lambda: kernels.expert_mlp(
            addresses, 0, down_offset, slot[0], SILU, matrix, indices, indices, matrix.copy(), matrix.copy()
        ),
        lambda: kernels.add_experts(one.copy(), matrix, one),
        lambda: kernels.rms_norm(one, one, 1e-6, one.copy()),
    ]


def _stored(dtype: torch.dtype) -> np.ndarray:
    return kernel_view(torch.ones(1, 1, dtype=dtype))
