"""Gated experts for a few rows: gate and up, activation, down, straight from the stored bytes."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np
from numba import carray

from engine.model.kernels.activation import activate
from engine.model.kernels.declare import parallel_kernel, prange
from engine.model.kernels.exponential import exp
from engine.model.kernels.storage import dot, pointer_at


@parallel_kernel
def expert_mlp(addresses, gate_up_offset, down_offset, stored, activation, x, tokens, rows, hidden, out):
    """out[rows[p]] = down(act(gate(x[tokens[p]])) * up(x[tokens[p]])) for each pair p of a token and an expert.

    addresses int64 [pairs]: first byte of the slot of each pair's expert; offsets in bytes to gate_up
    [2 * intermediate, width] (gate rows first) and down [width, intermediate]; stored: any array of the weights'
    kernel dtype; x float32 [any, width]; tokens and rows int64 [pairs]; hidden float32 [>= pairs, intermediate]
    is scratch; out float32 [any, width]. Which pairs share a call does not change a pair's result.
    """
    pairs = addresses.shape[0]
    width = x.shape[1]
    intermediate = hidden.shape[1]
    for i in prange(pairs * intermediate):
        pair = i // intermediate
        row = i - pair * intermediate
        gate_up = carray(pointer_at(addresses[pair] + gate_up_offset), (2 * intermediate, width), stored.dtype)
        token = x[tokens[pair]]
        up = dot(gate_up[intermediate + row], token)
        hidden[pair, row] = activate(activation, dot(gate_up[row], token)) * up
    for i in prange(pairs * width):
        pair = i // width
        row = i - pair * width
        down = carray(pointer_at(addresses[pair] + down_offset), (width, intermediate), stored.dtype)
        out[rows[pair], row] = dot(down[row], hidden[pair])


@parallel_kernel
def add_shared_expert(gate, up, down, activation, scale_weight, x, hidden, residual):
    """residual += sigmoid(scale_weight . x) * down(act(gate(x)) * up(x)), for one token.

    gate and up [intermediate, width] and down [width, intermediate] stored; scale_weight, x and residual float32
    [width]; hidden float32 [intermediate] is scratch.
    """
    for row in prange(hidden.shape[0]):
        hidden[row] = activate(activation, dot(gate[row], x)) * dot(up[row], x)
    scale = np.float32(1) / (np.float32(1) + exp(-dot(scale_weight, x)))
    for row in prange(residual.shape[0]):
        residual[row] += scale * dot(down[row], hidden)
