"""A weighted sum of a few rows of a stored matrix: a matrix times a vector that is zero nearly everywhere."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from engine.model.kernels.declare import kernel
from engine.model.kernels.storage import to_float32


@kernel
def add_rows(stored, places, values, out):
    """out += sum of values[i] * stored[places[i]]; stored [rows, n], places int64, values and out float32."""
    for i in range(len(places)):
        row, value = stored[places[i]], values[i]
        for j in range(out.shape[0]):
            out[j] += value * to_float32(row[j])
