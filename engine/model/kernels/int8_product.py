"""Products with matrices kept in eight bits, a scale for each row: a quarter of the memory traffic of fp32."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import inlined, kernel, parallel_kernel, prange


@inlined
def int8_dot(row, x):
    """row @ x; row int8, x float32."""
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += np.float32(row[i]) * x[i]
    return total


@parallel_kernel
def int8_matvec(stored, scales, x, out):
    """out[o] = scales[o] * (stored[o] @ x); stored int8 [outputs, inputs], the others float32."""
    for o in prange(stored.shape[0]):
        out[o] = int8_dot(stored[o], x) * scales[o]


@kernel
def int8_add_rows(stored, scales, places, values, out):
    """out += sum of values[i] * scales[p] * stored[p], p = places[i]; stored int8 [rows, n], places int64."""
    for i in range(places.shape[0]):
        row, factor = stored[places[i]], values[i] * scales[places[i]]
        for j in range(out.shape[0]):
            out[j] += factor * np.float32(row[j])
