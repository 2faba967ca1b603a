"""A small network that reads the residual stream in mid-step, in one call: it is asked while a token waits."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import kernel
from engine.model.kernels.int8_product import int8_dot
from engine.model.kernels.log_odds import logit, sigmoid


@kernel
def read_out(x, mean, scale, inward, inward_bias, outward, outward_bias, mix, before, inner, out):
    """out = sigmoid(a logit(before) + b (outward @ relu(inward @ ((x - mean) * scale) + bias) + bias) + c).

    inward, outward: (int8 [rows, n], float32 [rows]), the values and a scale for each row; mix float32 [3] holds a, b,
    c; before and out float32 [outputs]; inner [units] is scratch. On the calling thread: waking others costs more.
    """
    standard = (x - mean) * scale
    values, scales = inward
    for unit in range(values.shape[0]):
        inner[unit] = max(int8_dot(values[unit], standard) * scales[unit] + inward_bias[unit], np.float32(0))
    values, scales = outward
    for o in range(values.shape[0]):
        said = int8_dot(values[o], inner) * scales[o] + outward_bias[o]
        out[o] = sigmoid(mix[0] * logit(before[o]) + mix[1] * said + mix[2])
