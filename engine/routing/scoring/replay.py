"""Leads a predictor through a recorded conversation exactly as the engine would while it happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.traces.trace import RoutingTrace


@dataclass
class Prediction:
    """What was predicted before position `position`; `seconds` covers `predict` and the later `observed`.

    `probabilities` is the predictor's own array, good until the next one is asked for.
    """

    position: int
    probabilities: np.ndarray
    seconds: float


def replay(predictor: RoutingPredictor, trace: RoutingTrace, prompts_too: bool = False) -> Iterator[Prediction]:
    """One Prediction for each decoded token, prompts being read; `prompts_too`: for every token.

    `seconds` is complete only when the next one has been asked for.
    """
    predictor.begin()
    asked = np.ones(len(trace), bool) if prompts_too else trace.decoded
    position = 0
    while position < len(trace):
        if not asked[position]:
            later = np.flatnonzero(asked[position:])
            stop = position + int(later[0]) if len(later) else len(trace)
            predictor.read(trace.rows(position, stop))
            position = stop
            continue
        began = time.perf_counter()
        probabilities = predictor.predict(int(trace.token_ids[position]))
        prediction = Prediction(position, probabilities, time.perf_counter() - began)
        yield prediction
        hidden = None if trace.hidden is None else trace.hidden[position]
        began = time.perf_counter()
        predictor.observed(trace.experts[position], trace.weights[position], hidden)
        prediction.seconds += time.perf_counter() - began
        position += 1
