"""One token through a Llama-like attention block: norm, projections, rotary embedding, attention, output."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import inlined, kernel, parallel_kernel, prange
from engine.model.kernels.exponential import exp
from engine.model.kernels.storage import dot

CHUNK = 128  # positions one thread attends to at a time; fixed, so that sums do not depend on the thread count


@kernel
def rms_norm(x, weight, epsilon, out):
    """out = weight * x / sqrt(mean(x^2) + epsilon); float32 [width]. `out` may be `x`."""
    squares = np.float32(0)
    for i in range(x.shape[0]):
        squares += x[i] * x[i]
    scale = np.float32(1) / np.sqrt(squares / np.float32(x.shape[0]) + np.float32(epsilon))
    for i in range(x.shape[0]):
        out[i] = weight[i] * (x[i] * scale)


@inlined
def normalise_heads(heads, weight, epsilon):
    """Norm of queries or keys [heads, head_dim]: none, over each head, or over the full width, by weight's size."""
    if weight.shape[0] == 0:
        return
    per_norm = weight.shape[0] // heads.shape[1]  # heads that one norm spans: one, or all of them
    for first in range(0, heads.shape[0], per_norm):
        squares = np.float32(0)
        for head in range(first, first + per_norm):
            for i in range(heads.shape[1]):
                squares += heads[head, i] * heads[head, i]
        scale = np.float32(1) / np.sqrt(squares / np.float32(weight.shape[0]) + np.float32(epsilon))
        for head in range(first, first + per_norm):
            for i in range(heads.shape[1]):
                heads[head, i] = weight[(head - first) * heads.shape[1] + i] * (heads[head, i] * scale)


@inlined
def rotate(heads, cos, sin):
    """Rotary embedding in place: each head's first half pairs with its second half."""
    half = heads.shape[1] // 2
    for head in range(heads.shape[0]):
        for i in range(half):
            first = heads[head, i]
            second = heads[head, half + i]
            heads[head, i] = first * cos[i] - second * sin[i]
            heads[head, half + i] = second * cos[half + i] + first * sin[half + i]


@inlined
def _scores(query, keys, scale, scores):
    """scores[t] = scale * keys[t] . query, four positions at a time, so that sums run beside each other."""
    fours = keys.shape[0] // 4 * 4
    for t in range(0, fours, 4):
        first, second, third, fourth = keys[t], keys[t + 1], keys[t + 2], keys[t + 3]
        a = b = c = d = np.float32(0)
        for i in range(query.shape[0]):
            a += first[i] * query[i]
            b += second[i] * query[i]
            c += third[i] * query[i]
            d += fourth[i] * query[i]
        scores[t], scores[t + 1], scores[t + 2], scores[t + 3] = a * scale, b * scale, c * scale, d * scale
    for t in range(fours, keys.shape[0]):
        scores[t] = dot(keys[t], query) * scale


@inlined
def _weighted_sum(weights, values, out):
    """out = sum over t of weights[t] * values[t], four positions at a time."""
    for i in range(out.shape[0]):
        out[i] = np.float32(0)
    fours = values.shape[0] // 4 * 4
    for t in range(0, fours, 4):
        a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        first, second, third, fourth = values[t], values[t + 1], values[t + 2], values[t + 3]
        for i in range(out.shape[0]):
            out[i] += (a * first[i] + b * second[i]) + (c * third[i] + d * fourth[i])
    for t in range(fours, values.shape[0]):
        a, first = weights[t], values[t]
        for i in range(out.shape[0]):
            out[i] += a * first[i]


@inlined
def attend_chunk(query, keys, values, scores, scale, out):
    """Unnormalised attention of one query over some positions; returns (largest score, sum of exponentials)."""
    _scores(query, keys, scale, scores)
    largest = np.float32(-np.inf)
    for t in range(keys.shape[0]):
        largest = max(largest, scores[t])
    total = np.float32(0)
    for t in range(keys.shape[0]):
        scores[t] = exp(scores[t] - largest)
        total += scores[t]
    _weighted_sum(scores, values, out)
    return largest, total


@inlined
def merge_chunks(largest, totals, outputs, out):
    """Joins one head's chunks: largest and totals [chunks], outputs [chunks, head_dim] -> out [head_dim]."""
    overall = np.float32(-np.inf)
    for c in range(largest.shape[0]):
        overall = max(overall, largest[c])
    total = np.float32(0)
    for d in range(out.shape[0]):
        out[d] = np.float32(0)
    for c in range(largest.shape[0]):
        share = exp(largest[c] - overall)
        total += share * totals[c]
        for d in range(out.shape[0]):
            out[d] += share * outputs[c, d]
    for d in range(out.shape[0]):
        out[d] /= total


@parallel_kernel
def attention_block(
    norm_weight,
    epsilon,
    q_weight,
    k_weight,
    v_weight,
    o_weight,
    q_bias,
    k_bias,
    v_bias,
    o_bias,
    q_norm,
    k_norm,
    scale,
    window,
    keys,
    values,
    position,
    cos,
    sin,
    residual,
    x,
    query,
    attended,
    scores,
    largest,
    totals,
    outputs,
):
    """residual += attention(norm(residual)) for the token at `position`; its key and value go into the cache.

    Weights stored [out, in]; biases and head norms float32, of size 0 where the family has none; keys and values
    [kv_heads, context, head_dim]; window: positions seen including the own; residual, x [width]; query, attended
    [heads, head_dim]; scores [heads, context], largest and totals [heads, chunks], outputs [heads, chunks,
    head_dim] are scratch.
    """
    heads, head_dim = query.shape
    kv_heads = keys.shape[0]
    rms_norm(residual, norm_weight, epsilon, x)
    q_rows = heads * head_dim
    kv_rows = kv_heads * head_dim
    flat_query = query.reshape(-1)
    for row in prange(q_rows + 2 * kv_rows):
        if row < q_rows:
            flat_query[row] = dot(q_weight[row], x) + (q_bias[row] if q_bias.shape[0] else np.float32(0))
        elif row < q_rows + kv_rows:
            r = row - q_rows
            bias = k_bias[r] if k_bias.shape[0] else np.float32(0)
            keys[r // head_dim, position, r % head_dim] = dot(k_weight[r], x) + bias
        else:
            r = row - q_rows - kv_rows
            bias = v_bias[r] if v_bias.shape[0] else np.float32(0)
            values[r // head_dim, position, r % head_dim] = dot(v_weight[r], x) + bias
    normalise_heads(query, q_norm, epsilon)
    rotate(query, cos, sin)
    key = keys[:, position]
    normalise_heads(key, k_norm, epsilon)
    rotate(key, cos, sin)
    start = max(0, position + 1 - window)
    seen = position + 1 - start
    chunks = (seen + CHUNK - 1) // CHUNK
    group = heads // kv_heads
    for unit in prange(kv_heads * chunks):
        kv_head = unit // chunks
        chunk = unit - kv_head * chunks
        first = start + chunk * CHUNK
        last = min(first + CHUNK, position + 1)
        for head in range(kv_head * group, (kv_head + 1) * group):
            largest[head, chunk], totals[head, chunk] = attend_chunk(
                query[head],
                keys[kv_head, first:last],
                values[kv_head, first:last],
                scores[head, first:last],
                scale,
                outputs[head, chunk],
            )
    for head in range(heads):
        merge_chunks(largest[head, :chunks], totals[head, :chunks], outputs[head, :chunks], attended[head])
    flat_attended = attended.reshape(-1)
    for row in prange(residual.shape[0]):
        bias = o_bias[row] if o_bias.shape[0] else np.float32(0)
        residual[row] += dot(o_weight[row], flat_attended) + bias
