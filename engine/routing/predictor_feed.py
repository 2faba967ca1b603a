"""Keeps a predictor's history in step with the chat: prompts are read to it, a new chat is a new beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.routing.forecast import Forecast
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.traces.recorded_pass import RecordedPass, RowShape

FORGIVEN_TOKENS = 16  # taken back at the end of a chat: its history stays nearly true, reading it again would cost more


class PredictorFeed:
    """A PassListener. What decoding steps use reaches the predictor through the forecast, prompts through here."""

    def __init__(self, predictor: RoutingPredictor, forecast: Forecast, experts_per_layer: Sequence[int]) -> None:
        self._predictor, self._forecast = predictor, forecast
        self._shape = RowShape(tuple(experts_per_layer), predictor.shape.top_k)
        self._prompt: RecordedPass | None = None
        predictor.begin()

    def kept(self, common: int, kept: int, total: int) -> None:
        if total - kept > FORGIVEN_TOKENS:
            self._predictor.begin()

    def begin_pass(self, position: int, ids: Sequence[int], decoded: bool) -> None:
        self._prompt = None if decoded else RecordedPass(self._shape, ids, decoded)

    def observed(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        if self._prompt is not None:
            self._prompt.observed(layer, hidden, top_k_index, top_k_weights)

    def final_hidden(self, hidden: Any) -> None:
        self._forecast.hidden = hidden[-1]

    def end_pass(self) -> None:
        if self._prompt is not None:
            self._predictor.read(self._prompt.rows("prompt"))
            self._prompt = None

    def drop_pass(self) -> None:
        self._prompt = None
