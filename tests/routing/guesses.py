"""Predictors for tests: told what to say, or told the future."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from engine.routing.trace import RoutingTrace


class Told:
    """Says the same rows every time; keeps what it was shown."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows.astype(np.float32)
        self.horizon = len(rows)
        self.shown: list[np.ndarray] = []

    def predict(self, token_id: int) -> np.ndarray:
        return self.rows

    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        self.shown.append(experts.copy())


class Clairvoyant:
    """Knows the decoded positions of `traces`, which must be what is decoded, in this order."""

    def __init__(self, traces: Iterable[RoutingTrace], experts: int, horizon: int = 2) -> None:
        self.horizon = horizon
        self._future = (rows for trace in traces for rows in _futures(trace.multi_hot(experts), trace, horizon))

    def predict(self, token_id: int) -> np.ndarray:
        return next(self._future)

    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        """Nothing to learn."""


def _futures(used: np.ndarray, trace: RoutingTrace, horizon: int) -> Iterable[np.ndarray]:
    padded = np.concatenate([used, np.zeros((horizon, *used.shape[1:]), np.float32)])
    for row in np.flatnonzero(trace.decoded):
        yield padded[row : row + horizon]
