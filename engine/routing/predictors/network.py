"""What a network must offer to be trained as a predictor of routing."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from engine.routing.shape import RoutingShape
from engine.routing.training.windows import Batch


class PredictorNetwork(nn.Module):
    """`horizon`: rows it gives; `hidden_width`, `prompt_tokens`: what it wants in a batch, 0 for nothing.

    `listwise`: whether it learns each layer's experts against each other or every expert alone.
    """

    shape: RoutingShape
    horizon: int
    hidden_width = 0
    prompt_tokens = 0
    listwise = True

    @abstractmethod
    def forward(self, batch: Batch) -> torch.Tensor:
        """Log odds, float32 [windows, tokens, horizon, layers, experts]."""
