"""Routers, activations and the sum of experts for one token of each of several chats."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import kernel, parallel_kernel, prange
from engine.model.kernels.exponential import exp
from engine.model.kernels.routing import route
from engine.model.kernels.storage import dot
from engine.model.kernels.tile_product import gate_all


@parallel_kernel
def route_rows(residual, norm_weight, epsilon, router_weight, renormalise, x, probabilities, experts, weights):
    """`route` for each row of residual, x, probabilities, experts and weights."""
    for row in prange(residual.shape[0]):
        route(
            residual[row],
            norm_weight,
            epsilon,
            router_weight,
            renormalise,
            x[row],
            probabilities[row],
            experts[row],
            weights[row],
        )


@parallel_kernel
def gate_rows(activation, both, chosen, hidden):
    """hidden[p] = act(gate) * up for each p of int64 `chosen`; both float32 [pairs, 2 * intermediate], gate first."""
    for i in prange(chosen.shape[0]):
        row = chosen[i]
        half = hidden.shape[1]
        gate_all(activation, both[row, :half], both[row, half:], hidden[row])


@kernel
def add_combined(residual, outputs, row_of_pair, weights):
    """residual[t] += sum over k, in order, of weights[t, k] * outputs[row_of_pair[t, k]]."""
    for t in range(residual.shape[0]):
        for i in range(residual.shape[1]):
            total = np.float32(0)
            for k in range(weights.shape[1]):
                total += weights[t, k] * outputs[row_of_pair[t, k], i]
            residual[t, i] += total


@parallel_kernel
def add_scaled(residual, outputs, scale_weight, x):
    """residual[t] += sigmoid(scale_weight . x[t]) * outputs[t]; float32 [rows, width], scale_weight [width]."""
    for t in prange(residual.shape[0]):
        scale = np.float32(1) / (np.float32(1) + exp(-dot(scale_weight, x[t])))
        for i in range(residual.shape[1]):
            residual[t, i] += scale * outputs[t, i]
