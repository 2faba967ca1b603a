"""Stage 2, the real-time correction: while a token's step runs, the routers of the layers ahead say what they think."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.model import kernels
from engine.routing.blend import Blend
from engine.routing.lookahead import RouterLookahead
from engine.routing.predictors.stored_matrix import to_int8


class RouterCorrection:
    """The blend of stage 1 with deeper routers applied to the present residual stream. Compiled, with routers in eight
    bits: while a token waits, reading them is most of the work.
    """

    def __init__(self, lookahead: RouterLookahead, blend: Blend) -> None:
        self._lookahead, self._blend = lookahead, blend
        self._compiled = None
        if kernels.available():
            from engine.model.kernels.look_ahead import look_ahead

            self._compiled = look_ahead
            self._plain = np.empty(lookahead.width, np.float32)
            self._ahead = np.empty(lookahead.experts, np.float32)
            self._out = np.empty((blend.distances, lookahead.experts), np.float32)
            rounded = to_int8(lookahead.routers.reshape(-1, lookahead.width))
            self._routers = rounded.values.reshape(lookahead.routers.shape)
            self._scales = rounded.scales.reshape(lookahead.routers.shape[:2])
            self._of_layer = [self._arguments(layer) for layer in range(lookahead.layers)]

    def ahead(self, layer: int, hidden: Any, stage1: np.ndarray) -> np.ndarray:
        """float32 [layers ahead, experts]: probabilities for layers layer+1, ..., fewer at the end of the model.

        hidden: float32 [width] or [1, width], what the router of `layer` saw; stage1: [layers, experts]. The array is
        overwritten by the next call.
        """
        x = np.asarray(hidden).reshape(1, -1)
        if self._compiled is None or layer == self._lookahead.layers - 1:
            found = self._lookahead.probabilities(layer, x, self._reach(layer))[0]
            return self._blend(layer, stage1, found)
        deeper, weights, out = self._of_layer[layer]
        self._compiled(x[0], *weights, stage1[deeper], self._plain, self._ahead, out)
        return out

    def _reach(self, layer: int) -> int:
        """How many layers are seen from `layer`."""
        return min(self._blend.distances, self._lookahead.layers - 1 - layer)

    def _arguments(self, layer: int) -> tuple[slice, tuple[Any, ...], np.ndarray]:
        """What the kernel takes in `layer`, cut to size once: the layers ahead, their weights, where they go."""
        reach = self._reach(layer)
        deeper = slice(layer + 1, layer + 1 + reach)
        routers, inverse_norm = (self._routers[deeper], self._scales[deeper]), self._lookahead.inverse_norms[layer]
        return deeper, (inverse_norm, routers, self._blend.toward(layer)), self._out[:reach]
