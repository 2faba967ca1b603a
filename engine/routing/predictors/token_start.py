"""Where token embeddings begin: the directions in which tokens' routing differs most.

Training from there instead of from noise saves the epochs in which a network would first have to find again what a
table by token id knows.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from engine.routing.logistic import logit
from engine.routing.predictors.recurrent_network import RecurrentNetwork
from engine.routing.traces.trace import RoutingTrace

PRIOR_TOKENS = 4.0  # the marginal counts as much as so many sightings of a token


def start_from_tokens(network: RecurrentNetwork, traces: Iterable[RoutingTrace]) -> None:
    """Sets embedding, the direct part of this token's head and its bias to the best low-rank table of `traces`.

    The table holds shrunk log odds less the marginal's; tokens never seen get nothing, and so the marginal.
    """
    shape, width = network.shape, network.sizes.token_width
    sums = np.zeros((shape.vocabulary, shape.outputs), np.float32)
    seen = np.zeros(shape.vocabulary, np.float32)
    for trace in traces:
        np.add.at(sums, trace.token_ids, trace.multi_hot(shape.experts).reshape(len(trace), -1))
        np.add.at(seen, trace.token_ids, 1)
    marginal = sums.sum(0) / max(seen.sum(), 1)
    found = np.flatnonzero(seen)
    likely = (sums[found] + PRIOR_TOKENS * marginal) / (seen[found, None] + PRIOR_TOKENS)
    table = logit(likely) - logit(marginal)
    weighted = table * np.sqrt(seen[found, None])  # frequent tokens matter more
    _, directions = np.linalg.eigh(weighted.T.astype(np.float64) @ weighted)
    best = directions[:, ::-1][:, :width].astype(np.float32)
    places = table @ best
    scale = max(float(np.sqrt((places**2).mean())), 1e-6)
    with torch.no_grad():
        network.token.weight[torch.from_numpy(found), : best.shape[1]] = torch.from_numpy(places / scale)
        if network.projection is not None:
            network.projection.weight.zero_()
        head = network.this.weight
        head[:, : network.sizes.head_width] *= 0.1
        head[:, network.sizes.head_width :].zero_()
        head[:, network.sizes.head_width :][:, : best.shape[1]] = torch.from_numpy(best * scale)
        network.this.bias.copy_(torch.from_numpy(logit(marginal)))
        network.later.bias.copy_(torch.from_numpy(np.tile(logit(marginal), network.sizes.horizon - 1)))
