"""Compiling the kernels a model will need before its first token asks for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from engine.model.kernels.activation import SILU
from engine.model.kernels.decode_kernels import DecodeKernels
from engine.model.kernels.packed_product import four_bit_rows, int8_rows, raise_four_bit, raise_int8
from engine.model.kernels.routing import combine
from engine.model.kernels.run_layers import POINTERS, run_layers
from engine.model.kernels.storage import kernel_view
from engine.model.kernels.tile_product import TILE_OUTPUTS, expert_rows, multiply_rows

STAGE = "Compiling the decoding kernels (first start only)"
Progress = Callable[[str, int, int], None]
Step = Callable[[], object]


def warm_up(
    dense: torch.dtype,
    experts: torch.dtype | None,
    fast_path: bool,
    on_progress: Progress | None = None,
    packed: bool = False,
    joint: bool = False,
) -> None:
    """Compiles, or loads what an earlier start compiled, for weights stored in these dtypes.

    Without `experts` the experts' kernel is left out, without `fast_path` those that only the fast path uses;
    with `packed` those for experts in few bits are added, with `joint` those of the fast path for several chats.
    """
    kernels = DecodeKernels()
    steps = _common_steps(kernels, _stored(dense))
    if experts is not None:
        steps += _experts_steps(kernels, _stored(experts))
    if packed:
        steps += _packed_steps()
    if fast_path:
        steps += _fast_path_steps(kernels, _stored(dense))
    if fast_path and experts is not None:
        steps.append(lambda: _run_no_layers(_stored(dense), _stored(experts)[0]))
    if fast_path and joint:
        from engine.model.kernels.warm_up_joint import joint_steps

        steps += joint_steps(_stored(dense).dtype, None if experts is None else _stored(experts).dtype)
    for done, step in enumerate(steps):
        if on_progress:
            on_progress(STAGE, done, len(steps))
        step()
    if on_progress:
        on_progress(STAGE, len(steps), len(steps))


# Each kernel runs on arrays of ones, of the types that it will be given.


def _common_steps(kernels: DecodeKernels, dense: np.ndarray) -> list[Step]:
    matrix = np.ones((1, 1), np.float32)
    return [
        lambda: kernels.matvec(dense, matrix, matrix.copy()),
        lambda: multiply_rows(_tall(dense), matrix, np.empty((1, TILE_OUTPUTS), np.float32)),
        lambda: combine(matrix, np.zeros((1, 1), np.int64), matrix, matrix.copy()),
    ]


def _experts_steps(kernels: DecodeKernels, experts: np.ndarray) -> list[Step]:
    slot = np.ascontiguousarray(np.tile(experts.reshape(1, 1), (3, 1)))  # gate, up and down of one number each
    address, down_offset = np.array([slot.ctypes.data], np.int64), 2 * slot.itemsize
    matrix, rows = np.ones((1, 1), np.float32), np.zeros(1, np.int64)
    tall, out = _tall(experts), np.empty((1, TILE_OUTPUTS), np.float32)
    return [
        lambda: kernels.expert_mlp(
            address, 0, down_offset, slot[0], SILU, matrix, rows, rows, matrix.copy(), matrix.copy()
        ),
        lambda: expert_rows(tall, np.tile(experts, (TILE_OUTPUTS, TILE_OUTPUTS // 2)), SILU, matrix, rows, out),
    ]


def _packed_steps() -> list[Step]:
    one, eight, wide = (np.ones((1, count), np.float32) for count in (1, 8, 16))
    table, half_bytes, exponent = np.ones(16, np.float32), np.ones((1, 8), np.uint8), np.ones((1, 1), np.uint8)
    return [
        lambda: int8_rows(np.ones((1, 1), np.int8), one, one, one.copy()),
        lambda: raise_int8(np.ones((1, 1), np.int8), one, one.copy()),
        lambda: four_bit_rows(half_bytes, one, table, eight, eight, one.copy()),
        lambda: four_bit_rows(half_bytes, exponent, table, eight, eight, one.copy()),
        lambda: raise_four_bit(half_bytes, one, table, True, wide.copy()),
        lambda: raise_four_bit(half_bytes, exponent, table, True, wide.copy()),
    ]


def _fast_path_steps(kernels: DecodeKernels, dense: np.ndarray) -> list[Step]:
    one = np.ones(1, np.float32)
    matrix, cube = np.ones((1, 1), np.float32), np.ones((1, 1, 1), np.float32)
    attention = [one, 1e-6, dense, dense, dense, dense, *[np.empty(0, np.float32)] * 6, np.float32(1), 1]
    attention += [cube.copy(), cube.copy(), 0, one, one, one.copy(), one.copy(), matrix.copy(), matrix.copy()]
    attention += [matrix.copy(), matrix.copy(), matrix.copy(), cube.copy()]
    return [
        lambda: kernels.attention_block(*attention),
        lambda: kernels.route(one, one, 1e-6, matrix, True, one.copy(), one.copy(), np.zeros(1, np.int64), one.copy()),
        lambda: kernels.add_shared_expert(dense, dense, dense, SILU, one, one, one.copy(), one.copy()),
        lambda: kernels.add_experts(one.copy(), matrix, one),
        lambda: kernels.rms_norm(one, one, 1e-6, one.copy()),
    ]


def _run_no_layers(dense: np.ndarray, stored: np.ndarray) -> None:
    one, matrix, cube = np.ones(1, np.float32), np.ones((1, 1), np.float32), np.ones((1, 1, 1), np.float32)
    numbers, table = np.zeros(1, np.int64), np.zeros((1, 1), np.int64)
    weights = np.zeros((0, POINTERS), np.int64), table, np.zeros((1, 3)), numbers, dense, stored, 1, 1, SILU, True
    scratch = one, matrix, matrix, matrix, matrix, matrix, cube, numbers, numbers, numbers, matrix, matrix, one
    run_layers(
        0, False, np.zeros(0, np.bool_), one, 0, one, one, table, *weights, numbers, matrix, table, matrix, *scratch
    )


def _tall(stored: np.ndarray) -> np.ndarray:
    return np.tile(stored, (TILE_OUTPUTS, 1))


def _stored(dtype: torch.dtype) -> np.ndarray:
    return kernel_view(torch.ones(1, 1, dtype=dtype))
