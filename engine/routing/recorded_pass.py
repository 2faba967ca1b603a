"""The rows of one forward pass while its layers are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.routing.lookahead import RouterLookahead
from engine.routing.trace import NOBODY, RoutingTrace


@dataclass(frozen=True)
class RowShape:
    """What a row holds; `ahead` needs a lookahead and `distances` > 0."""

    experts_per_layer: tuple[int, ...]
    top_k: int
    lookahead: RouterLookahead | None = None
    distances: int = 0
    hidden: bool = False


class RecordedPass:
    """Filled layer by layer; copies what it is told, since the computation uses that memory again."""

    def __init__(self, shape: RowShape, ids: Sequence[int], decoded: bool) -> None:
        rows, layers = len(ids), len(shape.experts_per_layer)
        self._shape = shape
        self._ids = np.asarray(ids, np.int32)
        self._decoded = np.full(rows, decoded)
        self._experts = np.full((rows, layers, shape.top_k), NOBODY, np.int16)
        self._weights = np.zeros((rows, layers, shape.top_k), np.float32)
        self._ahead: np.ndarray | None = None
        self._hidden: np.ndarray | None = None
        if shape.lookahead is not None and shape.distances:
            self._ahead = np.zeros((rows, layers, shape.distances, shape.lookahead.experts), np.float16)

    def __len__(self) -> int:
        return len(self._ids)

    def observed(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        """`layer` is one of the MoE layers; arguments as in `ExpertProvider.observe`."""
        index = np.asarray(top_k_index)
        width = index.shape[1]
        self._experts[:, layer, :width] = index
        self._weights[:, layer, :width] = np.asarray(top_k_weights)
        if self._ahead is not None:
            assert self._shape.lookahead is not None
            found = self._shape.lookahead.probabilities(layer, np.asarray(hidden), self._shape.distances)
            self._ahead[:, layer, : found.shape[1]] = found

    def final_hidden(self, hidden: Any) -> None:
        """[rows, width], the residual stream after the last layer, normalised."""
        if self._shape.hidden:
            self._hidden = np.asarray(hidden, np.float16).reshape(len(self), -1)

    def rows(self, conversation: str) -> RoutingTrace:
        """The finished rows: the heaviest expert first, ids beyond a layer's experts as NOBODY."""
        experts = self._experts
        nobody = (experts < 0) | (experts >= np.array(self._shape.experts_per_layer, np.int16)[:, None])
        experts[nobody], self._weights[nobody] = NOBODY, 0.0
        order = np.argsort(np.where(nobody, np.inf, -self._weights), axis=-1, kind="stable")
        return RoutingTrace(
            conversation,
            self._ids,
            np.take_along_axis(experts, order, axis=-1),
            np.take_along_axis(self._weights, order, axis=-1).astype(np.float16),
            self._decoded,
            self._ahead,
            self._hidden,
        )
