"""A token's layers in one call, up to the first whose experts have to be asked for."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np
from numba import carray

from engine.model.kernels.attention import attention_block
from engine.model.kernels.declare import kernel
from engine.model.kernels.expert_mlp import expert_mlp
from engine.model.kernels.routing import add_experts, route
from engine.model.kernels.storage import pointer_at

POINTERS = 15  # of each layer, in the order in which they are read below


@kernel
def run_layers(
    first,
    is_routed,
    pauses,
    residual,
    position,
    cos,
    sin,
    addresses,
    pointers,
    lengths,
    numbers,
    windows,
    dense,
    stored,
    kv_heads,
    context,
    activation,
    renormalise,
    offsets,
    x,
    experts,
    weights,
    attention_x,
    query,
    attended,
    scores,
    largest,
    totals,
    merged,
    chosen,
    rows,
    tokens,
    hidden,
    outputs,
    probabilities,
):
    """residual [width] goes through attention, router and experts of layer `first` and those after it, as
    `attention_block`, `route`, `expert_mlp` and `add_experts` compute them one after another; where `is_routed`, layer
    `first` only through its experts. Returns the number of layers at the end, or else a layer that has been routed and
    whose experts are not computed: `layer` where it is to pause, ~layer (negative) where experts are not all there.

    pauses bool [layers]: after whose routing it returns. pointers int64 [layers, POINTERS]: first bytes of a layer's
    arrays; lengths int64 [layers, 6]: the lengths of its four biases and two head norms; numbers float64 [layers, 3]:
    two epsilons and the attention's scale; windows int64 [layers]; dense and stored: any arrays of the dense weights'
    and the experts' kernel dtypes; addresses int64 [layers, experts] of slots, 0 for experts that have none; offsets
    int64 [2] of gate_up and down within one. x float32 [layers, width], experts int64 and weights float32 [layers,
    top_k] come back as what each router saw and chose. The rest is scratch, as the four kernels describe it.
    """
    width = residual.shape[0]
    q_rows, kv_rows = query.shape[0] * query.shape[1], kv_heads * query.shape[1]
    kv_shape = (kv_heads, context, query.shape[1])
    for layer in range(first, pointers.shape[0]):
        at, length = pointers[layer], lengths[layer]
        ids, shares = experts[layer], weights[layer]
        goes_on = is_routed and layer == first
        if not goes_on:
            attention_block(
                carray(pointer_at(at[0]), (width,), np.float32),
                numbers[layer, 0],
                carray(pointer_at(at[1]), (q_rows, width), dense.dtype),
                carray(pointer_at(at[2]), (kv_rows, width), dense.dtype),
                carray(pointer_at(at[3]), (kv_rows, width), dense.dtype),
                carray(pointer_at(at[4]), (width, q_rows), dense.dtype),
                carray(pointer_at(at[5]), (length[0],), np.float32),
                carray(pointer_at(at[6]), (length[1],), np.float32),
                carray(pointer_at(at[7]), (length[2],), np.float32),
                carray(pointer_at(at[8]), (length[3],), np.float32),
                carray(pointer_at(at[9]), (length[4],), np.float32),
                carray(pointer_at(at[10]), (length[5],), np.float32),
                np.float32(numbers[layer, 2]),
                windows[layer],
                carray(pointer_at(at[11]), kv_shape, np.float32),
                carray(pointer_at(at[12]), kv_shape, np.float32),
                position,
                cos,
                sin,
                residual,
                attention_x,
                query,
                attended,
                scores,
                largest,
                totals,
                merged,
            )
            norm = carray(pointer_at(at[13]), (width,), np.float32)
            router = carray(pointer_at(at[14]), (addresses.shape[1], width), np.float32)
            route(residual, norm, numbers[layer, 1], router, renormalise, x[layer], probabilities, ids, shares)
        for k in range(chosen.shape[0]):
            chosen[k] = addresses[layer, ids[k]]
            if chosen[k] == 0:
                return ~layer
        if pauses[layer] and not goes_on:
            return layer
        seen = x[layer].reshape(1, width)
        expert_mlp(chosen, offsets[0], offsets[1], stored, activation, seen, tokens, rows, hidden, outputs)
        add_experts(residual, outputs, shares)
    return pointers.shape[0]
