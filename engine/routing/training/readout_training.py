"""Trains the readout: for each tapped layer a small network from the router's input to the next token's routing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from engine.routing.logistic import logit
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.readout import tap_layers
from engine.routing.scoring.replay import replay
from engine.routing.small_network import SmallNetwork
from engine.routing.traces.trace import RoutingTrace
from engine.routing.training.small_network_training import SmallNetworkSettings, best_weighed, fit_small_network

EXAMPLE_TOKENS = 2000  # that a tap's three mixing weights are fitted on
Stage = Callable[[int, int], None]


def fit_readout(
    predictor: RoutingPredictor,
    train: Sequence[RoutingTrace],
    validation: Sequence[RoutingTrace],
    settings: SmallNetworkSettings,
    start: Mapping[int, SmallNetwork],
    on_progress: Stage | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> dict[int, SmallNetwork]:
    """A tap for each of `tap_layers`; none where traces lack `midway` or the predictor looks no further than one token.

    Networks learn from `train`; what weighs them against the predictor is fitted on `validation`, which neither knows.
    `start`: of what the predictor was before it learnt on; each stays where it says more of `validation`.
    """
    told = [trace for trace in train if trace.midway is not None and len(trace) > 1]
    asked = [trace for trace in validation if trace.midway is not None and len(trace) > 1]
    if not told or not asked or predictor.horizon < 2:
        return {}
    shape, layers = predictor.shape, tap_layers(predictor.shape.layers)
    used = torch.from_numpy(np.concatenate([t.multi_hot(shape.experts)[1:].astype(bool) for t in told]))

    def surprise(odds: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Listwise, as the predictor's own; see training_loss."""
        true = used[rows]
        return -(F.log_softmax(odds.unflatten(-1, true.shape[1:]), -1) * true).sum() / true.sum().clamp(min=1)

    taps: dict[int, list[SmallNetwork]] = {}
    for number, layer in enumerate(layers):
        if on_progress:
            on_progress(number, len(layers))
        seen = torch.from_numpy(np.concatenate([_midway(trace)[:-1, number] for trace in told]))
        taps[layer] = [start[layer]] if layer in start else []
        taps[layer].append(fit_small_network(seen, shape.outputs, surprise, settings, must_stop))
    return _weigh(taps, predictor, asked)


def _weigh(
    taps: dict[int, list[SmallNetwork]], predictor: RoutingPredictor, traces: Sequence[RoutingTrace]
) -> dict[int, SmallNetwork]:
    """The best for each layer, with its mixing weights, and with them what its log odds mean."""
    step = max(sum(map(len, traces)) // EXAMPLE_TOKENS, 1)
    before, used, seen = [], [], []
    for trace in traces:
        hot = trace.multi_hot(predictor.shape.experts)
        for one in replay(predictor, trace, prompts_too=True):
            if one.position % step == 0 and one.position + 1 < len(trace):
                before.append(logit(one.probabilities[1]).reshape(-1))
                used.append(hot[one.position + 1].reshape(-1))
                seen.append(_midway(trace)[one.position])
    stage1, targets, inputs = np.stack(before), np.stack(used), np.stack(seen).astype(np.float32)
    return {
        layer: best_weighed(networks, inputs[:, number], stage1, targets)
        for number, (layer, networks) in enumerate(taps.items())
    }


def _midway(trace: RoutingTrace) -> np.ndarray:
    assert trace.midway is not None
    return trace.midway
