"""A small network that reads the residual stream in mid-step, in one call: it is asked while a token waits."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import inlined, kernel
from engine.model.kernels.exponential import exp

_SMALLEST = np.float32(1e-6)  # probabilities are kept so far from 0 and 1


@kernel
def read_out(x, mean, scale, inward, inward_bias, outward, outward_bias, mix, before, inner, out):
    """out = sigmoid(a logit(before) + b (outward @ relu(inward @ ((x - mean) * scale) + bias) + bias) + c).

    inward, outward: (int8 [rows, n], float32 [rows]), the values and a scale for each row; mix float32 [3] holds a, b,
    c; before and out float32 [outputs]; inner [units] is scratch. On the calling thread: waking others costs more.
    """
    standard = (x - mean) * scale
    values, scales = inward
    for unit in range(values.shape[0]):
        inner[unit] = max(_dot(values[unit], standard) * scales[unit] + inward_bias[unit], np.float32(0))
    values, scales = outward
    for o in range(values.shape[0]):
        said = _dot(values[o], inner) * scales[o] + outward_bias[o]
        kept = min(max(before[o], _SMALLEST), np.float32(1) - _SMALLEST)
        odds = mix[0] * np.float32(np.log(kept / (np.float32(1) - kept))) + mix[1] * said + mix[2]
        out[o] = np.float32(1) / (np.float32(1) + exp(-odds))


@inlined
def _dot(row, x):
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += np.float32(row[i]) * x[i]
    return total
