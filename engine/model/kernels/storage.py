"""Weights as they lie in memory: bf16, fp16 or fp32 bits at an address, raised to fp32 in registers.

A kernel sees bf16 as uint16, fp16 as int16 and fp32 as float32; the array's dtype alone says which it is.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np
import torch
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, overload

from engine.model.kernels.declare import inlined

# without them the compiler would call a library function that compiled kernels do not have
HAS_HALF_INSTRUCTIONS = binding.get_host_cpu_features().get("f16c", False)

_KERNEL_DTYPES = {torch.bfloat16: torch.uint16, torch.float16: torch.int16, torch.float32: torch.float32}


def has_kernel_dtype(dtype: torch.dtype) -> bool:
    """Whether the kernels can read weights of this dtype."""
    return dtype in _KERNEL_DTYPES


def kernel_view(tensor: torch.Tensor) -> np.ndarray:
    """The same memory as an array whose dtype tells the kernels how to read it."""
    return tensor.detach().view(_KERNEL_DTYPES[tensor.dtype]).numpy()


@intrinsic
def bits_to_float32(typing_context, bits):
    """uint32 -> the float32 of the same bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def float32_to_bits(typing_context, value):
    """float32 -> its bits as uint32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def _extend_half(typing_context, bits):
    """fp16 bits (int16) -> float32 by the processor's own instruction."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), generate


@intrinsic
def pointer_at(typing_context, address):
    """The address (int64) as a pointer that `numba.carray` accepts."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


def to_float32(stored):
    """One stored weight as float32; kernels only (chosen by the type of `stored`)."""
    raise NotImplementedError("to_float32 exists inside compiled kernels only")


@overload(to_float32)
def _to_float32(stored):
    if stored == types.uint16:
        return lambda stored: bits_to_float32(np.uint32(stored) << np.uint32(16))
    if stored == types.int16 and HAS_HALF_INSTRUCTIONS:
        return lambda stored: _extend_half(stored)
    if stored == types.int16:
        return lambda stored: half_to_float32(np.uint32(np.uint16(stored)))
    if stored == types.float32:
        return lambda stored: stored
    return None


@inlined
def half_to_float32(bits):
    """fp16 bits (uint32) as float32: rebiasing the exponent by a product keeps subnormal numbers exact."""
    magnitude = (bits & np.uint32(0x7FFF)) << np.uint32(13)
    sign = (bits & np.uint32(0x8000)) << np.uint32(16)
    finite = bits_to_float32(magnitude) * np.float32(2.0**112)
    special = bits_to_float32(magnitude | np.uint32(0x7F800000))
    value = special if magnitude >= np.uint32(0x0F800000) else finite
    return -value if sign else value


@inlined
def dot(weights, x):
    """Inner product of one row of stored weights with float32 `x`, accumulated in float32."""
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += to_float32(weights[i]) * x[i]
    return total
