"""What training makes small: how surprised a network is by the experts that were used."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.routing.training.windows import Batch


def loss_of(odds: torch.Tensor, batch: Batch, later_weight: float, listwise: bool) -> torch.Tensor:
    """Mean loss of an expert that was used; rows about later tokens count `later_weight`.

    odds: [windows, tokens, rows, layers, experts]. Listwise: cross-entropy of the layer's softmax, which asks only for
    the right order (in a trial on synthetic routing it recalled more than binary cross-entropy, calibrated as well by
    a slope and an offset). Else binary cross-entropy of every expert, as arXiv 2410.17954 has it.
    """
    total = odds.new_zeros(())
    tokens = odds.shape[1]
    for row in range(odds.shape[2]):
        counted = batch.inside & batch.known[:, row : row + tokens]
        said, used = odds[:, :, row][counted], batch.used[:, row : row + tokens][counted]
        surprise = _listwise(said, used) if listwise else _each_alone(said, used)
        total = total + (1.0 if row == 0 else later_weight) * surprise / used.sum().clamp(min=1)
    return total


def _listwise(odds: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    return -(F.log_softmax(odds, dim=-1) * used).sum()


def _each_alone(odds: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(odds, used, reduction="sum")
