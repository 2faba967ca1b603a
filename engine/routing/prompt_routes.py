"""Which experts a prompt will want, before the model has read any of it: the prediction that goes before a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.routing.predictors.interface import RoutingPredictor

LAST_TOKENS = 64  # what an answer is about stands near its beginning; a long document costs no more than a question


def predicted_use(predictor: RoutingPredictor, ids: Sequence[int]) -> np.ndarray:
    """float32 [layers, experts]: how often each expert is expected, over the last LAST_TOKENS of a prompt's `ids`.

    Nobody knows the real routing yet, so the predictor is told that its own guesses came true. `ids` is not empty.
    """
    shape, last = predictor.shape, ids[-LAST_TOKENS:]
    total = np.zeros((shape.layers, shape.experts), np.float32)
    predictor.begin()
    for token in last:
        expected = predictor.predict(token)[0]
        total += expected
        guessed = np.argpartition(expected, -shape.top_k, axis=1)[:, -shape.top_k :]
        predictor.observed(guessed.astype(np.int16), np.take_along_axis(expected, guessed, 1), None)
    return total / len(last)
