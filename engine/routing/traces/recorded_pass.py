"""The rows of one forward pass while its layers are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.routing.lookahead import RouterLookahead
from engine.routing.readout import tap_layers
from engine.routing.traces.trace import NOBODY, RoutingTrace


@dataclass(frozen=True)
class RowShape:
    """What a row holds; `ahead` needs a lookahead and `distances` > 0, `midway` comes with `hidden` and `taps`."""

    experts_per_layer: tuple[int, ...]
    top_k: int
    lookahead: RouterLookahead | None = None
    distances: int = 0
    hidden: bool = False
    taps: bool = True


class RecordedPass:
    """Filled layer by layer; copies what it is told, since the computation uses that memory again."""

    def __init__(self, shape: RowShape, ids: Sequence[int], decoded: bool) -> None:
        rows, layers = len(ids), len(shape.experts_per_layer)
        self._shape = shape
        self._ids = np.asarray(ids, np.int32)
        self._decoded = np.full(rows, decoded)
        self._experts = np.full((rows, layers, shape.top_k), NOBODY, np.int16)
        self._weights = np.zeros((rows, layers, shape.top_k), np.float32)
        self._told: list[tuple[int, list[int], list[float]]] = []  # of a single row
        self._ahead: np.ndarray | None = None
        self._hidden: np.ndarray | None = None
        self._taps = tap_layers(layers) if shape.hidden and shape.taps else ()
        self._midway: list[np.ndarray] = []
        if shape.lookahead is not None and shape.distances:
            self._ahead = np.zeros((rows, layers, shape.distances, shape.lookahead.experts), np.float16)

    def __len__(self) -> int:
        return len(self._ids)

    def observed(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        """`layer` is one of the MoE layers; arguments as in `ExpertProvider.observe`."""
        if len(self) == 1:  # lists cost a decoding step a third of what arrays would
            self._told.append((layer, top_k_index.tolist()[0], top_k_weights.tolist()[0]))
        else:
            index = np.asarray(top_k_index)
            self._experts[:, layer, : index.shape[1]] = index
            self._weights[:, layer, : index.shape[1]] = np.asarray(top_k_weights)
        if layer in self._taps:
            self._midway.append(np.asarray(hidden).astype(np.float16))
        if self._ahead is not None:
            assert self._shape.lookahead is not None
            found = self._shape.lookahead.probabilities(layer, np.asarray(hidden), self._shape.distances)
            self._ahead[:, layer, : found.shape[1]] = found

    def final_hidden(self, hidden: Any) -> None:
        """[rows, width], the residual stream after the last layer, normalised; of other row counts none is kept."""
        if self._shape.hidden and len(hidden) == len(self):
            self._hidden = np.asarray(hidden).astype(np.float16)

    def rows(self, conversation: str) -> RoutingTrace:
        """The finished rows: the heaviest expert first, ids beyond a layer's experts as NOBODY."""
        if self._told:
            self._fill_single_row()
        experts, weights = self._experts, self._weights
        nobody = (experts < 0) | (experts >= np.array(self._shape.experts_per_layer, np.int16)[:, None])
        if nobody.any() or (weights[..., 1:] > weights[..., :-1]).any():
            experts[nobody], weights[nobody] = NOBODY, 0.0
            order = np.argsort(np.where(nobody, np.inf, -weights), axis=-1, kind="stable")
            experts = np.take_along_axis(experts, order, axis=-1)
            weights = np.take_along_axis(weights, order, axis=-1)
        return RoutingTrace(
            conversation,
            self._ids,
            experts,
            weights.astype(np.float16),
            self._decoded,
            self._ahead,
            self._hidden,
            np.stack(self._midway, axis=1) if self._taps else None,
        )

    def _fill_single_row(self) -> None:
        top_k = self._shape.top_k
        layers, ids, weights = zip(*self._told, strict=True)
        self._experts[0, layers] = [row + [NOBODY] * (top_k - len(row)) for row in ids]
        self._weights[0, layers] = [row + [0.0] * (top_k - len(row)) for row in weights]
