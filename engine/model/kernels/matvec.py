"""Stored weights times a few rows of activations: what a Linear layer is while decoding."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from engine.model.kernels.declare import parallel_kernel, prange
from engine.model.kernels.storage import dot

MAX_ROWS = 4  # beyond this a matrix product that keeps a tile of weights in registers is faster


@parallel_kernel
def matvec(weight, x, out):
    """out[r] = weight @ x[r]; weight [out_features, in_features] stored, x and out float32 [rows, ...]."""
    for o in prange(weight.shape[0]):
        for r in range(x.shape[0]):
            out[r, o] = dot(weight[o], x[r])
