"""Measures predictors on conversations they have not learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.scoring.replay import replay
from engine.routing.scoring.scores import Scores
from engine.routing.traces.trace import RoutingTrace


@dataclass(frozen=True)
class Evaluation:
    """Of one predictor: `rows[r]` scores what it said about the token r after the one whose id was known."""

    rows: tuple[Scores, ...]
    median_microseconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON; `median_microseconds` is what predict and observed take for a token."""
        rows = [{"tokens_ahead": ahead, **scores.to_dict()} for ahead, scores in enumerate(self.rows)]
        return {"median_microseconds": self.median_microseconds, "rows": rows}


def evaluate(
    predictor: RoutingPredictor,
    traces: Sequence[RoutingTrace],
    ks: Sequence[int] | None = None,
    prompts_too: bool = False,
) -> Evaluation:
    """Replays each conversation from its beginning; prompts are read, their tokens count only with `prompts_too`.

    `ks`: default top k, one more, and twice as many.
    """
    shape = predictor.shape
    ks = ks or (shape.top_k, shape.top_k + 1, 2 * shape.top_k)
    rows = tuple(Scores(shape.layers, shape.experts, ks) for _ in range(predictor.horizon))
    predictions = []
    for trace in traces:
        used = trace.multi_hot(shape.experts)
        for prediction in replay(predictor, trace, prompts_too):
            predictions.append(prediction)
            future = used[prediction.position : prediction.position + predictor.horizon]
            for scores, said, true in zip(rows, prediction.probabilities, future, strict=False):
                scores.add(said, true)
    return Evaluation(rows, 1e6 * median([one.seconds for one in predictions] or [0.0]))


def evaluate_all(
    predictors: Mapping[str, RoutingPredictor], traces: Sequence[RoutingTrace], prompts_too: bool = False
) -> list[dict[str, Any]]:
    """One run for each predictor, in order, by its name."""
    return [
        {"predictor": name, "horizon": predictor.horizon}
        | evaluate(predictor, traces, prompts_too=prompts_too).to_dict()
        for name, predictor in predictors.items()
    ]
