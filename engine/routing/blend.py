"""Stage 2: what was predicted before the step, mixed with what the next layers' routers say during it.

While layer l computes, the routers of layers l + 1, l + 2, ... applied to its residual stream give `ahead`
probabilities. For distance d, p = sigmoid(a_d logit(stage 1) + b_d logit(ahead_d) + c_d), the weights fitted by
logistic regression for each distance and then for each layer, held to its distance's: where a layer's router says
little, stage 1 counts more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from engine.routing.logistic import fit_logistic, logit, sigmoid
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.scoring.replay import replay
from engine.routing.traces.trace import RoutingTrace

ARRAY = "blend"
UNFITTED_DISTANCES = 2  # routers further ahead need to be weighed against stage 1
START = np.array([1.0, 0.0, 0.0])  # stage 1 alone
LAYER_STRENGTH = 200.0  # examples with which a layer is held to its distance's weights
EXAMPLE_TOKENS = 2000

LayerExamples = tuple[np.ndarray, np.ndarray, np.ndarray]


class Blend:
    """coefficients: float32 [distances, layers, 3], a, b and c for predicting that layer from so far before it."""

    def __init__(self, coefficients: np.ndarray) -> None:
        self.coefficients = np.ascontiguousarray(coefficients, np.float32)

        diagonal = np.arange(self.distances)
        layers = self.coefficients.shape[1]
        self._toward = [
            np.ascontiguousarray(self.coefficients[diagonal[:reach], layer + 1 + diagonal[:reach]])
            for layer in range(layers)
            for reach in [min(self.distances, layers - 1 - layer)]
        ]

    @property
    def distances(self) -> int:
        return len(self.coefficients)

    def toward(self, layer: int) -> np.ndarray:
        """float32 [up to distances, 3]: what `layer` uses for the layers after it, nearest first."""
        return self._toward[layer]

    def __call__(self, layer: int, stage1: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        """float32 [up to distances, experts]: for layers `layer` + 1, + 2, ..., as `layer`'s residual stream sees them.

        stage1: [layers, experts], a predictor's row 0; ahead: [distances, experts], router probabilities.
        """
        reach = min(self.distances, len(ahead), len(stage1) - 1 - layer)
        targets = np.arange(layer + 1, layer + 1 + reach)
        a, b, c = self._toward[layer][:reach].T[..., None]
        return sigmoid(a * logit(stage1[targets]) + b * logit(ahead[:reach]) + c)

    def by_distance(self, stage1: np.ndarray, ahead: np.ndarray) -> list[np.ndarray]:
        """A whole step at once: for distance d, float32 [layers - d, experts], layers d, d + 1, ... seen from d before.

        stage1: [layers, experts]; ahead: [layers, distances, experts].
        """
        before, mixed = logit(stage1), []
        for d in range(1, min(self.distances, ahead.shape[1], len(stage1) - 1) + 1):
            a, b, c = self.coefficients[d - 1, d:].T[..., None]
            mixed.append(sigmoid(a * before[d:] + b * logit(ahead[:-d, d - 1]) + c))
        return mixed


def fit_blend(predictor: RoutingPredictor, traces: Sequence[RoutingTrace]) -> Blend | None:
    """From conversations the predictor has not learnt; None where they have no `ahead`."""
    examples = list(_examples(predictor, traces))
    if not examples:
        return None
    stage1, ahead, used = (np.stack(arrays) for arrays in zip(*examples, strict=True))
    distances, layers = ahead.shape[2], stage1.shape[1]
    coefficients = np.tile(START, (distances, layers, 1))
    for distance in range(1, distances + 1):
        by_layer = [
            (_features(stage1[:, target], ahead[:, target - distance, distance - 1]), used[:, target].reshape(-1))
            for target in range(distance, layers)
        ]
        if not by_layer:
            continue
        every_feature, every_target = (np.concatenate(arrays) for arrays in zip(*by_layer, strict=True))
        whole = fit_logistic(every_feature, every_target, START)
        coefficients[distance - 1] = whole
        for target, (features, targets) in enumerate(by_layer, distance):
            coefficients[distance - 1, target] = fit_logistic(features, targets, whole, LAYER_STRENGTH)
    return Blend(coefficients)


def routers_alone(layers: int, top_k: int) -> Blend:
    """Where no predictor was trained: a deeper router's probability of an expert, times the experts a token uses."""
    return Blend(np.tile([0.0, 1.0, np.log(top_k)], (UNFITTED_DISTANCES, layers, 1)))


def blend_of(arrays: Mapping[str, np.ndarray]) -> Blend | None:
    """The blend kept in a predictor's file, if one is."""
    return Blend(arrays[ARRAY]) if ARRAY in arrays else None


def _examples(predictor: RoutingPredictor, traces: Sequence[RoutingTrace]) -> Iterator[LayerExamples]:
    """Of tokens evenly apart: stage 1 [layers, experts], ahead [layers, distances, experts], used [layers, experts]."""
    told = [trace for trace in traces if trace.ahead is not None]
    step = max(sum(map(len, told)) // EXAMPLE_TOKENS, 1)
    for trace in told:
        assert trace.ahead is not None
        used = trace.multi_hot(predictor.shape.experts)
        for one in replay(predictor, trace, prompts_too=True):
            if one.position % step == 0:
                yield one.probabilities[0].copy(), trace.ahead[one.position], used[one.position]


def _features(stage1: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    return np.stack([logit(stage1).reshape(-1), logit(ahead).reshape(-1)], axis=1)
