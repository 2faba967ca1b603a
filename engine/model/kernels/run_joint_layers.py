"""The layers of a pass over several chats in one call, up to the first whose experts have to be asked for."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np
from numba import carray

from engine.model.kernels.declare import inlined, kernel
from engine.model.kernels.joint_attention import add_rows, joint_attention, norm_rows
from engine.model.kernels.joint_experts import add_combined, gate_rows, route_rows
from engine.model.kernels.row_product import multiply_groups
from engine.model.kernels.storage import pointer_at

POINTERS = 9  # of each layer, in the order in which they are read below


@kernel
def run_joint_layers(
    first,
    residual,
    keys,
    values,
    contexts,
    positions,
    cos,
    sin,
    addresses,
    pointers,
    lengths,
    numbers,
    windows,
    matrices,
    features,
    columns,
    dense,
    stored,
    activation,
    renormalise,
    offsets,
    x,
    experts,
    weights,
    touched,
    count,
    rows,
    attention_x,
    projected,
    attended,
    added,
    probabilities,
    both,
    hidden,
    outputs,
    row_of_pair,
    workers,
):
    """residual [chats, width] goes through attention, router and experts of layer `first` and those after it, as the
    kernels for one layer compute them one after another. Returns the layer whose experts are not all there: it has been
    routed, its experts are not computed; the number of layers at the end.

    keys and values int64 [layers, chats], contexts, positions, cos and sin: as `joint_attention` takes them; addresses
    int64 [layers, experts] of slots, 0 for experts that have none. pointers int64 [layers, POINTERS]: first bytes of a
    layer's arrays; lengths int64 [layers, 6]: of its four biases and two head norms; numbers float64 [layers, 3]: two
    epsilons and the attention's scale; windows int64 [layers]; matrices int64 [layers, 4]: first bytes of query's,
    key's, value's and output's, whose features and columns, int64 [4], `multiply_groups` describes; dense and stored:
    any arrays of the dense weights' and the experts' kernel dtypes; offsets int64 [2] of gate_up and down in a slot.

    x float32 [layers, chats, width], experts int64 and weights float32 [layers, chats, top_k], and the first count[l]
    of touched int64 [layers, experts] come back as what each router saw and chose. rows int64 [chats] counts up from
    0. The rest is scratch of a layer: [chats, any] for each chat, [chats * top_k, any] for each chosen expert.
    """
    chats, width = residual.shape
    taken = np.zeros(1, np.int64)
    no_rows, all_rows = np.zeros(4, np.int64), np.full(4, chats, np.int64)
    firsts, lasts = np.empty_like(touched[0]), np.empty_like(touched[0])
    slots, tokens = np.empty_like(touched[0]), np.empty(outputs.shape[0], np.int64)
    every_pair = np.arange(outputs.shape[0])
    expert_columns = np.zeros_like(slots)
    both_features, down_features = np.full_like(slots, both.shape[1]), np.full_like(slots, width)
    for layer in range(first, pointers.shape[0]):
        at, length = pointers[layer], lengths[layer]
        norm_rows(residual, carray(pointer_at(at[0]), (width,), np.float32), numbers[layer, 0], attention_x)
        taken[0] = 0
        multiply_groups(
            matrices[layer, :3],
            features[:3],
            columns[:3],
            no_rows[:3],
            all_rows[:3],
            dense,
            attention_x,
            rows,
            projected,
            workers,
            taken,
        )
        taken[0] = 0
        joint_attention(
            carray(pointer_at(at[1]), (length[0],), np.float32),
            carray(pointer_at(at[2]), (length[1],), np.float32),
            carray(pointer_at(at[3]), (length[2],), np.float32),
            carray(pointer_at(at[5]), (length[4],), np.float32),
            carray(pointer_at(at[6]), (length[5],), np.float32),
            numbers[layer, 0],
            np.float32(numbers[layer, 2]),
            windows[layer],
            keys[layer],
            values[layer],
            contexts,
            positions,
            cos,
            sin,
            projected,
            attended,
            workers,
            taken,
        )
        taken[0] = 0
        multiply_groups(
            matrices[layer, 3:],
            features[3:],
            columns[3:],
            no_rows[3:],
            all_rows[3:],
            dense,
            attended.reshape(chats, -1),
            rows,
            added,
            workers,
            taken,
        )
        add_rows(residual, added, carray(pointer_at(at[4]), (length[3],), np.float32))
        norm = carray(pointer_at(at[7]), (width,), np.float32)
        router = carray(pointer_at(at[8]), (addresses.shape[1], width), np.float32)
        ids, shares = experts[layer], weights[layer]
        route_rows(residual, norm, numbers[layer, 1], router, renormalise, x[layer], probabilities, ids, shares)
        found = group_pairs(ids, touched[layer], firsts, lasts, tokens, row_of_pair)
        count[layer] = found
        for group in range(found):
            slots[group] = addresses[layer, touched[layer, group]]
            if slots[group] == 0:
                return layer
        taken[0] = 0
        multiply_groups(
            slots[:found] + offsets[0],
            both_features[:found],
            expert_columns[:found],
            firsts[:found],
            lasts[:found],
            stored,
            x[layer],
            tokens,
            both,
            workers,
            taken,
        )
        gate_rows(activation, both, every_pair, hidden)
        taken[0] = 0
        multiply_groups(
            slots[:found] + offsets[1],
            down_features[:found],
            expert_columns[:found],
            firsts[:found],
            lasts[:found],
            stored,
            hidden,
            every_pair,
            outputs,
            workers,
            taken,
        )
        add_combined(residual, outputs, row_of_pair, shares)
    return pointers.shape[0]


@inlined
def group_pairs(ids, touched, firsts, lasts, tokens, row_of_pair):
    """As `engine.model.experts.Pairs` puts (token, k) pairs in the order of their experts; returns how many experts
    `touched` names, whose pairs are rows firsts[g] to lasts[g].
    """
    row, found = 0, 0
    for expert in range(touched.shape[0]):
        firsts[found] = row
        for token in range(ids.shape[0]):
            for k in range(ids.shape[1]):
                if ids[token, k] == expert:
                    tokens[row], row_of_pair[token, k] = token, row
                    row += 1
        if row > firsts[found]:
            touched[found], lasts[found] = expert, row
            found += 1
    return found
