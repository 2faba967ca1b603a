"""How much is known of the next token at each tapped layer of this one's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.readout import NextTokenReadout, tap_layers
from engine.routing.scoring.replay import replay
from engine.routing.scoring.scores import Scores
from engine.routing.traces.trace import RoutingTrace


def evaluate_readout(
    predictor: RoutingPredictor, readout: NextTokenReadout, traces: Sequence[RoutingTrace], prompts_too: bool = False
) -> list[dict[str, Any]]:
    """For each tapped layer the scores of what it says of the next token; traces without `midway` are left out."""
    shape = predictor.shape
    ks = (shape.top_k, shape.top_k + 1, 2 * shape.top_k)
    scores = {layer: Scores(shape.layers, shape.experts, ks) for layer in tap_layers(shape.layers) if layer in readout}
    for trace in traces:
        if trace.midway is None:
            continue
        used = trace.multi_hot(shape.experts)
        for one in replay(predictor, trace, prompts_too):
            if one.position + 1 == len(trace):
                break
            for tap, layer in enumerate(scores):
                said = readout.at(layer, trace.midway[one.position, tap], one.probabilities[1])
                scores[layer].add(said, used[one.position + 1])
    return [{"layer": layer, **one.to_dict()} for layer, one in scores.items()]
