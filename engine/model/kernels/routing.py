"""The softmax-then-top-k router of Mixtral, OLMoE and Qwen, for one token."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.attention import rms_norm
from engine.model.kernels.declare import inlined, kernel, parallel_kernel, prange
from engine.model.kernels.exponential import exp
from engine.model.kernels.storage import dot


@kernel
def route(residual, norm_weight, epsilon, router_weight, renormalise, x, probabilities, experts, weights):
    """x = norm(residual); experts int64 [top_k] and weights float32 [top_k], the most probable expert first.

    router_weight float32 [num_experts, width]; probabilities float32 [num_experts] is scratch. Of equals, the
    lower id comes first.
    """
    rms_norm(residual, norm_weight, epsilon, x)
    softmax_of_logits(router_weight, x, probabilities)
    chosen_sum = np.float32(0)
    for k in range(experts.shape[0]):
        best = -1
        for expert in range(probabilities.shape[0]):
            taken = probabilities[expert] < 0
            if not taken and (best < 0 or probabilities[expert] > probabilities[best]):
                best = expert
        experts[k] = best
        weights[k] = probabilities[best]
        chosen_sum += probabilities[best]
        probabilities[best] = np.float32(-1)
    if renormalise:
        for k in range(weights.shape[0]):
            weights[k] /= chosen_sum


@inlined
def softmax_of_logits(router_weight, x, probabilities):
    for expert in range(probabilities.shape[0]):
        probabilities[expert] = dot(router_weight[expert], x)
    softmax(probabilities)


@inlined
def softmax(probabilities):
    """In place, from logits."""
    largest = np.float32(-np.inf)
    for expert in range(probabilities.shape[0]):
        largest = max(largest, probabilities[expert])
    total = np.float32(0)
    for expert in range(probabilities.shape[0]):
        probabilities[expert] = exp(probabilities[expert] - largest)
        total += probabilities[expert]
    for expert in range(probabilities.shape[0]):
        probabilities[expert] /= total


@kernel
def add_experts(residual, rows, weights):
    """residual += sum over k, in order, of weights[k] * rows[k]; float32 [width], [top_k, width], [top_k]."""
    for h in range(residual.shape[0]):
        total = np.float32(0)
        for k in range(weights.shape[0]):
            total += weights[k] * rows[k, h]
        residual[h] += total


@inlined
def _add_scaled(out, scale, row):
    for h in range(out.shape[0]):
        out[h] += scale * row[h]


@parallel_kernel
def combine(rows, row_of_pair, weights, result):
    """result[t] = sum over k, in order, of weights[t, k] * rows[row_of_pair[t, k]]; rows below 0 count as zero.

    rows float32 [any, width], row_of_pair int64 and weights float32 [tokens, top_k], result float32 [tokens, width].
    """
    for t in prange(result.shape[0]):
        for h in range(result.shape[1]):
            result[t, h] = np.float32(0)
        for k in range(weights.shape[1]):
            if row_of_pair[t, k] >= 0:
                _add_scaled(result[t], weights[t, k], rows[row_of_pair[t, k]])
