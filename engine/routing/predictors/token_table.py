"""What a table by token id knows: how often each token used each expert."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace

PRIOR_TOKENS = 1.0  # the marginal counts as much as so many sightings of the token


class TokenTable(RoutingPredictor):
    """Row 0 from the token's own counts, backed off to the marginal; later rows, their ids unknown, the marginal."""

    def __init__(self, shape: RoutingShape, marginal: np.ndarray, row_of: np.ndarray, table: np.ndarray, horizon: int):
        """marginal: float32 [layers, experts]; row_of: int32 [vocabulary], -1 for a token never seen; table: float16
        [tokens seen, layers, experts]."""
        super().__init__(shape, horizon)
        self._marginal, self._row_of, self._table = marginal, row_of, table
        self._out = self._empty()
        self._out[:] = marginal

    def begin(self) -> None:
        pass

    def read(self, rows: RoutingTrace) -> None:
        pass

    def predict(self, token_id: int) -> np.ndarray:
        row = self._row_of[token_id]
        self._out[0] = self._marginal if row < 0 else self._table[row]
        return self._out

    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        pass


def fit_token_table(shape: RoutingShape, traces: Iterable[RoutingTrace], horizon: int = 1) -> TokenTable:
    """The table of what `traces` did, prompts and answers alike."""
    sums: dict[int, np.ndarray] = {}
    seen: dict[int, int] = {}
    total, tokens = np.zeros((shape.layers, shape.experts), np.float64), 0
    for trace in traces:
        used = trace.multi_hot(shape.experts)
        total += used.sum(0)
        tokens += len(trace)
        for token, row in zip(trace.token_ids.tolist(), used, strict=True):
            if token in sums:
                sums[token] += row
                seen[token] += 1
            else:
                sums[token], seen[token] = row.copy(), 1
    marginal = (total / max(tokens, 1)).astype(np.float32)
    row_of = np.full(shape.vocabulary, -1, np.int32)
    row_of[list(sums)] = np.arange(len(sums))
    table = np.empty((len(sums), shape.layers, shape.experts), np.float16)
    for row, (token, count) in enumerate(seen.items()):
        table[row] = (sums[token] + PRIOR_TOKENS * marginal) / (count + PRIOR_TOKENS)
    return TokenTable(shape, marginal, row_of, table, horizon)
