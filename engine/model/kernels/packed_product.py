"""Products with matrices stored in few bits, raised to fp32 in registers, and raising them to memory."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from engine.model.kernels import table_lookup
from engine.model.kernels.declare import inlined, parallel_kernel, prange
from engine.model.kernels.int8_product import int8_dot
from engine.model.kernels.storage import bits_to_float32


def scale_value(stored):
    """A block's scale as float32: as it is, or two to a biased exponent (uint8); kernels only."""
    raise NotImplementedError("scale_value exists inside compiled kernels only")


@overload(scale_value)
def _scale_value(stored):
    if stored == types.uint8:
        # the exponent's place in a float32; below the smallest normal number one bit of the fraction
        return lambda stored: bits_to_float32(np.uint32(stored) << np.uint32(23) if stored else np.uint32(1 << 22))
    if stored == types.float32:
        return lambda stored: stored
    return None


@parallel_kernel
def int8_rows(numbers, scales, x, out):
    """out[r] = (numbers * scales) @ x[r]; numbers int8 [outputs, inputs], scales float32 [outputs, 1],
    x and out float32 [rows, ...].
    """
    for o in prange(numbers.shape[0]):
        for r in range(x.shape[0]):
            out[r, o] = int8_dot(numbers[o], x[r]) * scales[o, 0]


@inlined
def plain_block_dot(numbers, start, count, table, high, low):
    """`table_lookup.block_dot` for any processor."""
    part = np.float32(0)
    for i in range(start, start + count):
        part += table[numbers[i] >> 4] * high[i] + table[numbers[i] & 15] * low[i]
    return part


@inlined
def plain_block_raise(numbers, start, count, table, scale, high_first, out):
    """`table_lookup.block_raise` for any processor."""
    high = 0 if high_first else 1
    for i in range(start, start + count):
        out[2 * i + high] = table[numbers[i] >> 4] * scale
        out[2 * i + 1 - high] = table[numbers[i] & 15] * scale


_block_dot = table_lookup.block_dot if table_lookup.AVAILABLE else plain_block_dot
_block_raise = table_lookup.block_raise if table_lookup.AVAILABLE else plain_block_raise


@parallel_kernel
def four_bit_rows(numbers, scales, table, high, low, out):
    """out[r] = weight @ x[r], two numbers a byte.

    numbers uint8 [outputs, bytes]; scales [outputs, blocks] float32 or uint8 exponents; table float32 [16]; high and
    low float32 [rows, bytes]: the inputs that meet the upper and the lower half of each byte; out float32. A block
    has a multiple of 8 bytes.
    """
    blocks = scales.shape[1]
    block_bytes = numbers.shape[1] // blocks
    for o in prange(numbers.shape[0]):
        for r in range(high.shape[0]):
            total = np.float32(0)
            for b in range(blocks):
                part = _block_dot(numbers[o], b * block_bytes, block_bytes, table, high[r], low[r])
                total += part * scale_value(scales[o, b])
            out[r, o] = total


@parallel_kernel
def raise_four_bit(numbers, scales, table, high_first, out):
    """out [outputs, 2 * bytes] float32 = the matrix itself; high_first: the upper half of a byte comes earlier."""
    blocks = scales.shape[1]
    block_bytes = numbers.shape[1] // blocks
    for o in prange(numbers.shape[0]):
        for b in range(blocks):
            scale = scale_value(scales[o, b])
            _block_raise(numbers[o], b * block_bytes, block_bytes, table, scale, high_first, out[o])


@parallel_kernel
def raise_int8(numbers, scales, out):
    """out float32 [outputs, inputs] = numbers * scales; numbers int8, scales float32 [outputs, 1]."""
    for o in prange(numbers.shape[0]):
        scale = scales[o, 0]
        for i in range(numbers.shape[1]):
            out[o, i] = np.float32(numbers[o, i]) * scale
