"""The recurrent predictor's step in two calls: small products that calling one by one, and waking threads for each,
would make several times as long.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import parallel_kernel, prange
from engine.model.kernels.int8_product import int8_dot
from engine.model.kernels.log_odds import sigmoid


@parallel_kernel
def advance(token, token_input, pending, recurrence, recurrence_bias, entering, staying, state):
    """`state` float32 [width] becomes a GRU's after it has read `token`, float32 [token width].

    token_input, recurrence: (int8 [3 * width, n], float32 [3 * width]), the values and a scale for each row, for reset
    gate, update gate and fresh state; pending float32 [3 * width]: what else enters, biases included; entering and
    staying [3 * width] are scratch.
    """
    of_token, token_scales = token_input
    of_state, state_scales = recurrence
    for row in prange(entering.shape[0]):
        entering[row] = int8_dot(of_token[row], token) * token_scales[row] + pending[row]
        staying[row] = int8_dot(of_state[row], state) * state_scales[row] + recurrence_bias[row]
    width, one, two = state.shape[0], np.float32(1), np.float32(2)
    for i in range(width):
        reset = sigmoid(entering[i] + staying[i])
        update = sigmoid(entering[width + i] + staying[width + i])
        fresh = two * sigmoid(two * (entering[2 * width + i] + reset * staying[2 * width + i])) - one  # tanh
        state[i] += (one - update) * (fresh - state[i])


@parallel_kernel
def foretell(with_token, mix, mix_bias, this, this_bias, later, later_bias, calibration, mixed, head, out):
    """out float32 [horizon, outputs] = the calibrated probabilities that follow from a state and the token it has read.

    with_token float32 [width + token width]: both; mix, this, later: int8 rows and their scales, as above; calibration
    float32 [horizon, 2]: slope and offset of the log odds; mixed [2 * head width] and head [head width + token width]
    are scratch. this has `outputs` rows, later horizon - 1 times as many.
    """
    mix_values, mix_scales = mix
    this_values, this_scales = this
    later_values, later_scales = later
    for unit in prange(mixed.shape[0]):
        mixed[unit] = max(int8_dot(mix_values[unit], with_token) * mix_scales[unit] + mix_bias[unit], np.float32(0))
    half = mixed.shape[0] // 2
    width = with_token.shape[0] - (head.shape[0] - half)
    head[:half] = mixed[:half]
    head[half:] = with_token[width:]
    rest, outputs = mixed[half:], out.shape[1]
    for row in prange(out.shape[0] * outputs):
        number = row // outputs
        if number == 0:
            odds = int8_dot(this_values[row], head) * this_scales[row] + this_bias[row]
        else:
            behind = row - outputs
            odds = int8_dot(later_values[behind], rest) * later_scales[behind] + later_bias[behind]
        out[number, row - number * outputs] = sigmoid(odds * calibration[number, 0] + calibration[number, 1])
