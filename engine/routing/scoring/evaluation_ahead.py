"""How much the next layers' routers know during a step, alone and blended with what was predicted before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.routing.blend import Blend
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.scoring.replay import replay
from engine.routing.scoring.scores import Scores
from engine.routing.traces.trace import RoutingTrace


def evaluate_ahead(
    predictor: RoutingPredictor, blend: Blend, traces: Sequence[RoutingTrace], prompts_too: bool = False
) -> list[dict[str, Any]]:
    """For each distance in layers, the scores of stage 1 ("before"), routers ("router") and both ("blend").

    All three are asked about the same layers. Conversations recorded without `ahead` are left out.
    """
    shape = predictor.shape
    ks = (shape.top_k, shape.top_k + 1, 2 * shape.top_k)
    told = [trace for trace in traces if trace.ahead is not None]
    scores = [
        {source: Scores(shape.layers, shape.experts, ks) for source in ("before", "router", "blend")}
        for _ in range(min([blend.distances, *(trace.ahead.shape[2] for trace in told if trace.ahead is not None)]))
    ]
    for trace in told:
        assert trace.ahead is not None
        used = trace.multi_hot(shape.experts)
        for one in replay(predictor, trace, prompts_too):
            before, ahead = one.probabilities[0], trace.ahead[one.position]
            mixed = blend.by_distance(before, ahead)
            for distance, (by_source, both) in enumerate(zip(scores, mixed, strict=False), 1):
                said = {"before": before[distance:], "router": ahead[:-distance, distance - 1], "blend": both}
                for source, probabilities in said.items():
                    by_source[source].add(probabilities, used[one.position, distance:], distance)
    return [
        {"distance": distance, **{source: one.to_dict() for source, one in by_source.items()}}
        for distance, by_source in enumerate(scores, 1)
    ]
