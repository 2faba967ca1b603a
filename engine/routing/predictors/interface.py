"""What every predictor of routing promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace


class RoutingPredictor(ABC):
    """Says before a token's step how likely it and the tokens after it use each expert.

    A conversation goes `begin`, `read` for what was computed elsewhere (a prompt), then for each decoded token
    `predict` and, when the step is over, `observed`. One thread at a time.
    """

    def __init__(self, shape: RoutingShape, horizon: int) -> None:
        self.shape = shape
        self.horizon = horizon
        """Tokens covered: the one whose id is known, and those after it."""

    @property
    def memory(self) -> np.ndarray | None:
        """float32 [width]: what is remembered of the conversation up to the token of the last `predict`, that one
        included; overwritten by the next. None for predictors whose memory nothing was trained to read.
        """
        return None

    @abstractmethod
    def begin(self) -> None:
        """Forgets all history; a conversation starts."""

    @abstractmethod
    def read(self, rows: RoutingTrace) -> None:
        """History computed elsewhere, in order, right after what was observed or read last."""

    @abstractmethod
    def predict(self, token_id: int) -> np.ndarray:
        """float32 [horizon, layers, experts]: probability that the expert is used, row 0 by `token_id` itself.

        Row r is about the token r later, whose id nobody knows. The array is the predictor's own and is overwritten
        by the next call; leave it unchanged.
        """

    @abstractmethod
    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        """The real routing of the token predicted last.

        experts: integers [layers, top k], NOBODY for none; weights: the router's, same shape; hidden: float
        [width], the token's residual stream after the last layer, normalised, where it is at hand.
        """

    def _empty(self) -> np.ndarray:
        return np.zeros((self.horizon, self.shape.layers, self.shape.experts), np.float32)
