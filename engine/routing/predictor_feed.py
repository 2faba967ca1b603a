"""Keeps a predictor's history in step with the chat: prompts are read to it, a new chat is a new beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.routing.forecast import Forecast
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.traces.recorded_pass import RecordedPass, RowShape
from engine.routing.traces.trace import RoutingTrace, joined

FORGIVEN_TOKENS = 16  # taken back at the end of a chat: its history stays nearly true, reading it again would cost more


class PredictorFeed:
    """A PassListener: one chat's history, in a predictor of its own.

    What steps that are foretold use reaches the predictor through the forecast; prompts, and steps that others read
    along with, through here.
    """

    def __init__(self, predictor: RoutingPredictor, forecast: Forecast, experts_per_layer: Sequence[int]) -> None:
        self._predictor, self._forecast = predictor, forecast
        self._shape = RowShape(tuple(experts_per_layer), predictor.shape.top_k)
        self._pass: RecordedPass | None = None
        self._unread: list[RoutingTrace] = []
        self._foretold = False  # the step in progress or about to begin
        predictor.begin()

    def foretell(self) -> None:
        """The next step is of this chat alone: the forecast follows its history."""
        self.catch_up()
        self._forecast.follow(self._predictor)
        self._foretold = True

    def catch_up(self) -> None:
        """Has the predictor read what it was not told: afterwards it knows the whole chat."""
        if self._unread:
            self._predictor.read(joined(self._unread))
            self._unread.clear()

    def kept(self, common: int, kept: int, total: int) -> None:
        self._foretold = False
        if total - kept > FORGIVEN_TOKENS:
            self._predictor.begin()
            self._unread.clear()

    def begin_pass(self, position: int, ids: Sequence[int], decoded: bool) -> None:
        self._pass = None if self._foretold else RecordedPass(self._shape, ids, decoded)

    def observed(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        if self._pass is not None:
            self._pass.observed(layer, hidden, top_k_index, top_k_weights)

    def final_hidden(self, hidden: Any) -> None:
        if self._foretold:
            self._forecast.hidden = hidden[-1]

    def end_pass(self) -> None:
        ended, self._pass, self._foretold = self._pass, None, False
        if ended is not None:
            rows = ended.rows("unread")
            self._unread.append(rows)
            if not rows.decoded[0]:
                self.catch_up()

    def drop_pass(self) -> None:
        self._pass, self._foretold = None, False
