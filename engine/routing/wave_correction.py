"""Stage 2 for several rows: the routers of the layers ahead on all rows' residual streams."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.routing.blend import Blend
from engine.routing.lookahead import RouterLookahead
from engine.routing.touching import blend_rows

MOST_CERTAIN = np.float32(0.999)  # of one row


class WaveBlend:
    """Each row's blend of stage 1 with the routers of the layers ahead, then any row's."""

    def __init__(self, blend: Blend, top_k: int) -> None:
        self._blend, self._top_k = blend, np.float32(top_k)

    @property
    def distances(self) -> int:
        return self._blend.distances

    def __call__(self, layer: int, ahead: np.ndarray, stage1: np.ndarray) -> np.ndarray:
        """float32 [up to distances, experts]: the probability that any row uses the expert, for the layers after
        `layer`; ahead: float32 [rows, distances, experts], router probabilities as that layer's residual streams have
        them; stage1: [rows or 1, layers, experts].
        """
        reach = min(self.distances, ahead.shape[1], stage1.shape[1] - 1 - layer)
        touched = np.empty((reach, stage1.shape[2]), np.float32)
        if reach:
            before = stage1[:, layer + 1 : layer + 1 + reach]
            coefficients = self._blend.toward(layer)[:reach]
            blend_rows(ahead[:, :reach], before, coefficients, self._top_k, MOST_CERTAIN, touched)
        return touched


class RouterWaveCorrection:
    """From the routers of the loaded model."""

    def __init__(self, lookahead: RouterLookahead, blend: WaveBlend) -> None:
        self._lookahead, self._blend = lookahead, blend

    def touched_ahead(self, layer: int, hidden: Any, stage1: np.ndarray) -> np.ndarray:
        reach = min(self._blend.distances, self._lookahead.layers - 1 - layer)
        return self._blend(layer, self._lookahead.probabilities(layer, np.asarray(hidden), reach), stage1)
