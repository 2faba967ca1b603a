"""Groups of tokens that become experts, and the router that finds a token's group."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def balancing_prices(cost: torch.Tensor, rounds: int = 16) -> torch.Tensor:
    """Prices [clusters] under which the cheapest columns of ``cost`` [tokens, clusters] share the tokens evenly."""
    tokens, clusters = cost.shape
    price = torch.zeros(clusters)
    step = cost.std() * 0.5
    for _ in range(rounds):
        load = torch.bincount((cost + price).argmin(1), minlength=clusters) * clusters / tokens
        price += step * (load - 1).clamp(-1, 1)
        step *= 0.85
    return price


def balanced_kmeans(x: torch.Tensor, clusters: int, generator: torch.Generator) -> torch.Tensor:
    """Cluster index of each row of ``x`` [tokens, features], clusters of about equal size."""
    x = F.normalize(x - x.mean(0), dim=1)
    centres = x[torch.randperm(len(x), generator=generator)[:clusters]]
    for _ in range(10):
        cost = -(x @ centres.T)
        assignment = (cost + balancing_prices(cost)).argmin(1)
        centres = F.normalize(torch.zeros_like(centres).index_add_(0, assignment, x), dim=1)
    return assignment


def fit_router(x: torch.Tensor, assignment: torch.Tensor, clusters: int) -> torch.Tensor:
    """Bias-free linear classifier [clusters, features] of ``assignment``: cross-entropy from a ridge start."""
    gram = x.T @ x / len(x)
    gram.diagonal().add_(0.02 * gram.diagonal().mean())
    inverse = torch.linalg.inv(gram)
    weight = torch.zeros(clusters, x.shape[1])
    target = F.one_hot(assignment, clusters).float()
    # Steps preconditioned by the inputs' covariance: ridge regression first, then damped Newton-like ones.
    for _ in range(40):
        residual = target - (x @ weight.T).softmax(1)
        weight += 2.0 * (residual.T @ x / len(x)) @ inverse
    return weight
