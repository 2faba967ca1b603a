"""The predicted routing path of each waiting token: by a trained predictor, or by what its chat used lately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from engine.routing.predictors.recurrent_batch import RecurrentBatch, can_batch
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import NOBODY

MEMORY = 0.85  # of a chat's tokens before, at each new one


class PathForecast(Protocol):
    """Of chats at places 0, 1, ...: `begin`, then for each token `predict` (once) and `observed`."""

    shape: RoutingShape

    def begin(self, place: int) -> None:
        """A new chat takes the place."""

    def predict(self, places: Sequence[int], token_ids: Sequence[int]) -> np.ndarray:
        """float32 [chats, layers, experts], the probability that each chat's next token uses each expert."""

    def observed(self, places: Sequence[int], experts: np.ndarray, weights: np.ndarray) -> None:
        """The real routing of the tokens predicted last: integers and float [chats, layers, top k]."""


class RecentPaths:
    """A chat's token uses what its tokens before used, the last one most."""

    def __init__(self, shape: RoutingShape, places: int, memory: float = MEMORY) -> None:
        self.shape = shape
        self._memory = memory
        self._often = np.zeros((places, shape.layers, shape.experts), np.float32)
        self._weight = np.zeros(places, np.float32)

    def begin(self, place: int) -> None:
        self._often[place] = 0
        self._weight[place] = 0

    def predict(self, places: Sequence[int], token_ids: Sequence[int]) -> np.ndarray:
        often: np.ndarray = self._often[places] / np.maximum(self._weight[places], 1e-6)[:, None, None]
        return often

    def observed(self, places: Sequence[int], experts: np.ndarray, weights: np.ndarray) -> None:
        used = used_experts(experts, self.shape.experts)
        self._often[places] = self._memory * self._often[places] + used
        self._weight[places] = self._memory * self._weight[places] + 1


def used_experts(experts: np.ndarray, number: int) -> np.ndarray:
    """float32 [tokens, layers, number], 1 where used; experts: integers [tokens, layers, top k]."""
    used = np.zeros((*experts.shape[:2], number + 1), np.float32)  # the last place takes NOBODY
    np.put_along_axis(used, np.where(experts == NOBODY, number, experts).astype(np.int64), 1.0, axis=-1)
    return used[..., :number]


def path_forecast(stored: StoredPredictor | None, shape: RoutingShape, places: int) -> PathForecast:
    """With the predictor that was trained for the model, if it can follow several chats; else by what they used."""
    if stored is not None and can_batch(stored):
        return RecurrentBatch(stored, places)
    return RecentPaths(shape, places)
