"""Trains a small network; what its log odds should say is up to the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from engine.errors import Cancelled
from engine.routing.logistic import fit_logistic
from engine.routing.small_network import SmallNetwork

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From log odds [rows, outputs] and which rows they are of, int64 [rows]."""


@dataclass(frozen=True)
class SmallNetworkSettings:
    """`units`: of the hidden layer; the rest as usual."""

    units: int = 512
    epochs: int = 6
    batch: int = 512
    rate: float = 2e-3
    weight_decay: float = 0.02
    dropout: float = 0.2
    seed: int = 0


class _Network(nn.Module):
    """[rows, width], standardised -> log odds [rows, outputs]."""

    def __init__(self, width: int, outputs: int, settings: SmallNetworkSettings) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(width, settings.units), nn.Linear(settings.units, outputs)
        self._dropout = settings.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        odds: torch.Tensor = self.outward(F.dropout(F.relu(self.inward(x)), self._dropout, self.training))
        return odds


def fit_small_network(
    x: torch.Tensor, outputs: int, loss: Loss, settings: SmallNetworkSettings, must_stop: Callable[[], bool]
) -> SmallNetwork:
    """Of inputs float16 [rows, width], the same for a seed; without its mixing weights. Raises Cancelled."""
    mean, scale = x.float().mean(0), 1 / x.float().std(0).clamp(min=1e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = _Network(x.shape[1], outputs, settings)
        adam = torch.optim.AdamW(network.parameters(), settings.rate, weight_decay=settings.weight_decay)
        steps = settings.epochs * -(-len(x) // settings.batch)
        pace = torch.optim.lr_scheduler.OneCycleLR(adam, settings.rate, total_steps=steps, pct_start=0.1)
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(x)).split(settings.batch):
                if must_stop():
                    raise Cancelled
                adam.zero_grad(set_to_none=True)
                loss(network((x[rows].float() - mean) * scale), rows).backward()
                adam.step()
                pace.step()
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    return SmallNetwork(
        weights["inward.weight"],
        weights["outward.weight"],
        mean.numpy(),
        scale.numpy(),
        weights["inward.bias"],
        weights["outward.bias"],
        np.array([0.0, 1.0, 0.0]),
    )


def best_weighed(
    networks: Sequence[SmallNetwork], x: np.ndarray, before: np.ndarray, targets: np.ndarray
) -> SmallNetwork:
    """The one that, its mixing weights fitted here, is least surprised by `targets`, in [0, 1], [rows, outputs].

    x: float32 [rows, width]; before: log odds [rows, outputs]; of conversations that no network has learnt from.
    """
    weighed = []
    for network in networks:
        features = np.stack([before.reshape(-1), network.odds(x).reshape(-1)], axis=1)
        mix = fit_logistic(features, targets.reshape(-1))
        odds = features @ mix[:2] + mix[2]
        surprise = float((np.logaddexp(0, odds) - targets.reshape(-1) * odds).mean())
        weighed.append((surprise, replace(network, mix=mix)))
    return min(weighed, key=lambda one: one[0])[1]
