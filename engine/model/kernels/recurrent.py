"""The recurrent predictor's step in two calls: small products that calling one by one, and waking threads for each,
would make several times as long.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import parallel_kernel, prange
from engine.model.kernels.int8_product import int8_add_row, int8_dot
from engine.model.kernels.log_odds import sigmoid


@parallel_kernel
def absorb(experts, weights, used, routing_input, hidden, hidden_mean, hidden_input, bias, centred, pending):
    """pending float32 [3 * width] = bias + what a token's routing and its residual stream add to the next step.

    experts int16, below 0 for nobody, and weights float32 [layers, top_k], which count as `routing_input.input_values`
    says, `used` being its USED; routing_input: (int8 [layers * experts, 3 * width], float32 [layers * experts]),
    hidden_input: (int8 [3 * width, n], float32 [3 * width]), values and a scale for each row; hidden, hidden_mean
    float32 [n], of size 0 where there is none; centred [n] is scratch.
    """
    of_routing, routing_scales = routing_input
    of_hidden, hidden_scales = hidden_input
    for i in range(pending.shape[0]):
        pending[i] = bias[i]
    number = of_routing.shape[0] // experts.shape[0]
    for layer in range(experts.shape[0]):
        total = np.float32(0)
        for k in range(experts.shape[1]):
            if experts[layer, k] >= 0:
                total += weights[layer, k]
        for k in range(experts.shape[1]):
            if experts[layer, k] >= 0:
                place = layer * number + experts[layer, k]
                share = weights[layer, k] / max(total, np.float32(1e-6)) + used
                int8_add_row(of_routing[place], share * routing_scales[place], pending)
    if hidden.shape[0] == 0:
        return
    for i in range(hidden.shape[0]):
        centred[i] = hidden[i] - hidden_mean[i]
    for row in prange(pending.shape[0]):
        pending[row] += int8_dot(of_hidden[row], centred) * hidden_scales[row]


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
    for i in range(half):  # loops, as an assignment of arrays would be a parallel region of its own
        head[i] = mixed[i]
    for i in range(head.shape[0] - half):
        head[half + i] = with_token[width + i]
    rest, outputs = mixed[half:], out.shape[1]
    for row in prange(outputs):
        odds = int8_dot(this_values[row], head) * this_scales[row] + this_bias[row]
        out[0, row] = sigmoid(odds * calibration[0, 0] + calibration[0, 1])
        for number in range(1, out.shape[0]):
            behind = (number - 1) * outputs + row
            odds = int8_dot(later_values[behind], rest) * later_scales[behind] + later_bias[behind]
            out[number, row] = sigmoid(odds * calibration[number, 0] + calibration[number, 1])
