"""The optimiser of both kinds of training: routers learn at a rate of their own, rates rise shortly, then fall."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from scripts.builtin.student import ExpertLayer


def make_optimiser(layers: Iterable[ExpertLayer], rate: float, router_rate: float) -> torch.optim.AdamW:
    """Over all parameters of `layers`; the rates are those that `set_rates` scales."""
    routers: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for layer in layers:
        routers.append(layer.router)
        others += [parameter for parameter in layer.parameters() if parameter is not layer.router]
    groups = [
        {"params": others, "lr": rate, "full_rate": rate},
        {"params": routers, "lr": router_rate, "full_rate": router_rate},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)


def set_rates(optimiser: torch.optim.Optimizer, step: int, steps: int, warm_up_steps: int) -> None:
    """Before `step` of `steps`: a short rise, then half a cosine."""
    rise = min(1.0, (step + 1) / warm_up_steps)
    scale = rise * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimiser.param_groups:
        group["lr"] = group["full_rate"] * scale
