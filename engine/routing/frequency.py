"""How often each expert was used of late: what stands for all that is farther than predictions."""

from __future__ import annotations

import numpy as np

from engine.routing.shape import RoutingShape

HALF_LIFE = 64.0  # tokens


class ExpertFrequency:
    """`values` float32 [layers, experts]: the share of recent tokens that used the expert, with a HALF_LIFE."""

    def __init__(self, shape: RoutingShape) -> None:
        self.values = np.full((shape.layers, shape.experts), shape.top_k / shape.experts, np.float32)
        self._forget = np.float32(1 - 2 ** (-1 / HALF_LIFE))

    def count(self, used: np.ndarray) -> None:
        """One token more; used: float32 [layers, experts], 1 for those that it used."""
        self.values += self._forget * (used - self.values)
