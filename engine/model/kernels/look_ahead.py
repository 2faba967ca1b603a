"""Routers of deeper layers on the present residual stream, mixed with what was predicted before the step."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from engine.model.kernels.declare import kernel
from engine.model.kernels.int8_product import int8_dot
from engine.model.kernels.log_odds import logit, sigmoid
from engine.model.kernels.routing import softmax


@kernel
def look_ahead(x, inverse_norm, routers, coefficients, stage1, plain, ahead, out):
    """out[d] = sigmoid(a logit(stage1[d]) + b logit(softmax(routers[d] @ (x * inverse_norm))) + c).

    x, inverse_norm float32 [width]; routers: (int8 [distances, experts, width], float32 [distances, experts]), the
    values and a scale for each expert; coefficients [distances, 3] hold a, b, c; stage1 and out [distances, experts];
    plain [width] and ahead [experts] are scratch.
    """
    values, scales = routers
    for i in range(x.shape[0]):
        plain[i] = x[i] * inverse_norm[i]
    for d in range(values.shape[0]):
        for e in range(ahead.shape[0]):
            ahead[e] = int8_dot(values[d, e], plain) * scales[d, e]
        softmax(ahead)
        a, b, c = coefficients[d, 0], coefficients[d, 1], coefficients[d, 2]
        for e in range(ahead.shape[0]):
            odds = a * logit(stage1[d, e]) + b * logit(ahead[e]) + c
            out[d, e] = sigmoid(odds)
