"""Conversations that decode side by side, from recordings: what each token uses, and what was predicted of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from engine.errors import InvalidSetting
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace
from engine.scheduling.cost import most_likely
from engine.scheduling.paths import PathForecast, used_experts


class Pool:
    """Each conversation from its position `start` on. `true`: bool [chats, tokens, layers, experts]; `predicted`:
    float16 of the same shape, by `forecast` in the order of the tokens; `top_k` as recorded; `seconds_per_token`: what
    predicting and being told of a chat's token took.
    """

    def __init__(
        self, traces: Sequence[RoutingTrace], shape: RoutingShape, forecast: PathForecast, start: int, tokens: int
    ) -> None:
        """Raises InvalidSetting where a conversation is too short."""
        shortest = min(len(trace) for trace in traces)
        if shortest < start + tokens:
            raise InvalidSetting(
                f"A recorded conversation has {shortest} tokens; {start + tokens} are needed.",
                "Record longer answers with `trace --prompts FILE --tokens 256`.",
            )
        rows = [trace.rows(start, start + tokens) for trace in traces]
        self.top_k = shape.top_k
        self.true = np.stack([used_experts(row.experts, shape.experts) > 0 for row in rows])
        self.predicted = np.empty(self.true.shape, np.float16)
        places = list(range(len(rows)))
        for place in places:
            forecast.begin(place)
        began = time.perf_counter()
        for token in range(tokens):
            self.predicted[:, token] = forecast.predict(places, [int(row.token_ids[token]) for row in rows])
            experts = np.stack([row.experts[token] for row in rows])
            forecast.observed(places, experts, np.stack([row.weights[token] for row in rows]))
        self.seconds_per_token = (time.perf_counter() - began) / (len(rows) * tokens)

    def __len__(self) -> int:
        return len(self.true)

    def recall(self) -> float:
        """Share of the experts used that were among as many predicted ones."""
        found = most_likely(self.predicted.astype(np.float32), self.top_k) & self.true
        return float(found.sum() / max(self.true.sum(), 1))
