"""Predictors that learn nothing: the floor, the simplest guess, and the ceiling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import NOBODY, RoutingTrace


class NoPrediction(RoutingPredictor):
    """Expects no expert at all: prefetching by it is no prefetching."""

    def __init__(self, shape: RoutingShape, horizon: int = 1) -> None:
        super().__init__(shape, horizon)
        self._nothing = self._empty()

    def begin(self) -> None:
        pass

    def read(self, rows: RoutingTrace) -> None:
        pass

    def predict(self, token_id: int) -> np.ndarray:
        return self._nothing

    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        pass


class PreviousToken(RoutingPredictor):
    """Every token does what the one before did; certain of it, so its probabilities are not calibrated."""

    def __init__(self, shape: RoutingShape, horizon: int = 1) -> None:
        super().__init__(shape, horizon)
        self._used = self._empty()
        self._layers = np.arange(shape.layers)[:, None]

    def begin(self) -> None:
        self._used[:] = 0

    def read(self, rows: RoutingTrace) -> None:
        if len(rows):
            self.observed(rows.experts[-1], rows.weights[-1], None)

    def predict(self, token_id: int) -> np.ndarray:
        return self._used

    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        self._used[:] = 0
        layers, chosen = np.broadcast_to(self._layers, experts.shape), experts != NOBODY
        self._used[:, layers[chosen], experts[chosen]] = 1


class Oracle(RoutingPredictor):
    """Knows the future: replays given conversations, the next one at each `begin`, and the first after the last."""

    def __init__(self, shape: RoutingShape, traces: Sequence[RoutingTrace], horizon: int = 1) -> None:
        super().__init__(shape, horizon)
        self._traces = traces
        self._turn = -1
        self._position = 0
        self._out = self._empty()

    @property
    def place(self) -> tuple[int, int]:
        """Which conversation is being replayed, and the position of its next token."""
        return self._turn, self._position

    def begin(self) -> None:
        self._turn = (self._turn + 1) % len(self._traces)
        self._position = 0

    def read(self, rows: RoutingTrace) -> None:
        self._position += len(rows)

    def predict(self, token_id: int) -> np.ndarray:
        future = self._traces[self._turn].rows(self._position, self._position + self.horizon)
        self._out[:] = 0
        self._out[: len(future)] = future.multi_hot(self.shape.experts)
        return self._out

    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        self._position += 1
