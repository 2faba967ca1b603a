"""Products with matrices kept in eight bits, a scale for each row: a quarter of the memory traffic of fp32."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import inlined


@inlined
def int8_dot(row, x):
    """row @ x; row int8, x float32."""
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += np.float32(row[i]) * x[i]
    return total


@inlined
def int8_add_row(row, factor, out):
    """out += factor * row; row int8, out float32."""
    for i in range(out.shape[0]):
        out[i] += factor * np.float32(row[i])
