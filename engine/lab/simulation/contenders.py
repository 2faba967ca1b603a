"""Policies by name, as simulations run them: the plain ones, Belady's, and a prefetcher that knows the future."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.cache.policies import PLAIN_POLICIES, Belady, EvictionPolicy, make_policy
from engine.cache.predicted_next_use import PredictedNextUse
from engine.errors import InvalidSetting
from engine.lab.simulation.simulate import acquisitions
from engine.routing.forecast import Forecast
from engine.routing.prefetcher import Prefetcher
from engine.routing.traces.trace import RoutingTrace

BOUNDS = ("belady", "clairvoyant")
CLAIRVOYANT_TOKENS = 4  # that it sees, the present one among them


class Clairvoyant:
    """A predictor that is always right about the decoded positions of `traces`, taken in order."""

    def __init__(self, traces: Sequence[RoutingTrace], experts: int, horizon: int = CLAIRVOYANT_TOKENS) -> None:
        self.horizon = horizon
        self._rows = [rows for trace in traces for rows in _futures(trace, experts, horizon)]
        self._next = 0

    def predict(self, token_id: int) -> np.ndarray:
        """The next position's rows, whatever its token."""
        rows = self._rows[self._next]
        self._next += 1
        return rows

    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        """Nothing to learn."""


def make_contender(name: str, traces: Sequence[RoutingTrace], experts: int) -> tuple[EvictionPolicy, Prefetcher | None]:
    """A fresh policy, and the prefetcher that goes with it if any, to decode `traces` in order.

    "belady" evicts as the least-moving demand cache, which never prefetches; "clairvoyant" prefetches with perfect
    predictions. Both need the future, so they are bounds. Raises InvalidSetting.
    """
    layers, top_k = traces[0].layers, traces[0].top_k
    if name == "belady":
        return Belady(acquisitions(traces)), None
    if name == "clairvoyant":
        forecast = Forecast(layers, experts, top_k, Clairvoyant(traces, experts))
        return PredictedNextUse(forecast.value), Prefetcher(forecast)
    if name not in PLAIN_POLICIES:
        names = ", ".join((*PLAIN_POLICIES, *BOUNDS))
        raise InvalidSetting(f"There is no policy called {name!r} to simulate.", f"Choose from {names}.")
    return make_policy(name, layers), None


def _futures(trace: RoutingTrace, experts: int, horizon: int) -> list[np.ndarray]:
    used = trace.multi_hot(experts)
    padded = np.concatenate([used, np.zeros((horizon, *used.shape[1:]), np.float32)])
    return [padded[row : row + horizon] for row in np.flatnonzero(trace.decoded)]
