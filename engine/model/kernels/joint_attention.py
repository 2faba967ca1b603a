"""The part of an attention block between its projections, for one token of each of several chats: every chat looks at
its own keys. What few rows need little of is done by one thread: to start the others takes longer.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np
from numba import carray

from engine.model.kernels.attention import CHUNK, attend_chunk, merge_chunks, normalise_heads, rms_norm, rotate
from engine.model.kernels.declare import inlined, kernel, parallel_kernel, prange
from engine.model.kernels.storage import pointer_at
from engine.model.kernels.tile_product import take


@kernel
def norm_rows(x, weight, epsilon, out):
    """`rms_norm` of each row."""
    for row in range(x.shape[0]):
        rms_norm(x[row], weight, epsilon, out[row])


@kernel
def add_rows(residual, rows, bias):
    """residual += rows + bias, float32 [chats, width]; bias of size 0 where there is none. `rows` changes too."""
    for row in range(residual.shape[0]):
        _add_bias(rows[row], bias)
        for i in range(rows.shape[1]):
            residual[row, i] += rows[row, i]


@inlined
def _add_bias(row, bias):
    if bias.shape[0]:
        for i in range(row.shape[0]):
            row[i] += bias[i]


@inlined
def _stored(address, kv_heads, context, head_dim):
    """A chat's keys or values at an address."""
    return carray(pointer_at(address), (kv_heads, context, head_dim), np.float32)


@inlined
def _store(stored, position, heads):
    for head in range(heads.shape[0]):  # in loops: an assignment of slices is taken for one that nobody reads
        for i in range(heads.shape[1]):
            stored[head, position, i] = heads[head, i]


@parallel_kernel
def joint_attention(
    q_bias,
    k_bias,
    v_bias,
    q_norm,
    k_norm,
    epsilon,
    scale,
    window,
    keys,
    values,
    contexts,
    positions,
    cos,
    sin,
    projected,
    attended,
    workers,
    taken,
):
    """Attention of each chat's token at positions[c], whose key and value go into its cache.

    Biases and norms of size 0 where the family has none; window: positions seen including the own; keys and values
    int64 [chats]: addresses of float32 [kv_heads, contexts[c], head_dim]; cos and sin float32 [chats, head_dim];
    projected float32 [chats, (heads + 2 * kv_heads) * head_dim]: query, key and value side by side, which changes;
    attended float32 [chats, heads, head_dim]; taken int64 [1], zero.
    """
    heads, head_dim = attended.shape[1:]
    kv_heads = (projected.shape[1] // head_dim - heads) // 2
    for chat in range(positions.shape[0]):
        head = projected[chat].reshape(-1, head_dim)
        query, key, value = head[:heads], head[heads : heads + kv_heads], head[heads + kv_heads :]
        _add_bias(query.reshape(-1), q_bias)
        _add_bias(key.reshape(-1), k_bias)
        _add_bias(value.reshape(-1), v_bias)
        normalise_heads(query, q_norm, epsilon)
        rotate(query, cos[chat], sin[chat])
        normalise_heads(key, k_norm, epsilon)
        rotate(key, cos[chat], sin[chat])
        _store(_stored(keys[chat], kv_heads, contexts[chat], head_dim), positions[chat], key)
        _store(_stored(values[chat], kv_heads, contexts[chat], head_dim), positions[chat], value)
    for _ in prange(workers):
        _attend_tasks(keys, values, contexts, positions, window, scale, kv_heads, projected, attended, taken)


@inlined
def _attend_tasks(keys, values, contexts, positions, window, scale, kv_heads, projected, attended, taken):
    chats, heads, head_dim = attended.shape
    group = heads // kv_heads
    chunks = 1
    for chat in range(chats):
        chunks = max(chunks, (min(positions[chat] + 1, window) + CHUNK - 1) // CHUNK)
    scores = np.empty(CHUNK, np.float32)
    largest, totals = np.empty((group, chunks), np.float32), np.empty((group, chunks), np.float32)
    outputs = np.empty((group, chunks, head_dim), np.float32)
    task = take(taken)
    while task < chats * kv_heads:
        chat = task // kv_heads
        kv_head = task - chat * kv_heads
        first, last = kv_head * group, (kv_head + 1) * group
        _attend_group(
            projected[chat].reshape(-1, head_dim)[first:last],
            _stored(keys[chat], kv_heads, contexts[chat], head_dim)[kv_head],
            _stored(values[chat], kv_heads, contexts[chat], head_dim)[kv_head],
            positions[chat],
            window,
            scale,
            scores,
            largest,
            totals,
            outputs,
            attended[chat, first:last],
        )
        task = take(taken)


@inlined
def _attend_group(query, keys, values, position, window, scale, scores, largest, totals, outputs, attended):
    """The heads of one chat that share keys and values [context, head_dim]; query and attended [heads, head_dim]."""
    start = max(0, position + 1 - window)
    chunks = (position + 1 - start + CHUNK - 1) // CHUNK
    for chunk in range(chunks):
        first = start + chunk * CHUNK
        last = min(first + CHUNK, position + 1)
        for head in range(query.shape[0]):
            largest[head, chunk], totals[head, chunk] = attend_chunk(
                query[head],
                keys[first:last],
                values[first:last],
                scores[: last - first],
                scale,
                outputs[head, chunk],
            )
    for head in range(query.shape[0]):
        merge_chunks(largest[head, :chunks], totals[head, :chunks], outputs[head, :chunks], attended[head])
