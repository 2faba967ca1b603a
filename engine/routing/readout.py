"""What a token's residual stream says in mid-step about the token after it, whose id nobody knows yet.

At a few layers on the way (`tap_layers`) a small network reads what the router sees there and gives the routing of the
next token. It is mixed with what was predicted before the step: p = sigmoid(a logit(stage 1) + b logit(network) + c),
with a, b, c of each tap fitted by logistic regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.routing.logistic import logit, sigmoid
from engine.routing.predictors.stored_matrix import Int8Rows, StoredMatrix, to_int8

PREFIX = "readout"
MATRICES = ("inward", "outward")
VECTORS = ("mean", "scale", "inward_bias", "outward_bias", "mix")
TAPS = 4


def tap_layers(layers: int) -> tuple[int, ...]:
    """The layers whose router inputs are read, evenly apart."""
    return tuple(sorted({layers * tap // (TAPS + 1) for tap in range(1, TAPS + 1)}))


@dataclass(frozen=True, eq=False)
class Tap:
    """One layer's network. float32, with inputs standardised first.

    inward: [units, width]; outward: [outputs, units]; mean, scale: [width]; inward_bias: [units]; outward_bias:
    [outputs]; mix: [3], a, b and c.
    """

    inward: np.ndarray
    outward: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    inward_bias: np.ndarray
    outward_bias: np.ndarray
    mix: np.ndarray


class NextTokenReadout:
    """Taps by the layer they read, ready to be asked: two products of a matrix in int8 and a vector each time."""

    def __init__(self, arrays: Mapping[str, np.ndarray], layers: Sequence[int]) -> None:
        self._taps = {layer: _StoredTap(arrays, f"{PREFIX}.{layer}") for layer in layers}

    def __contains__(self, layer: int) -> bool:
        return layer in self._taps

    def at(self, layer: int, hidden: Any, stage1: np.ndarray) -> np.ndarray:
        """float32 [layers, experts]: probability that the next token uses the expert.

        hidden: [width] or [1, width], what the router of `layer`, a tap, saw; stage1: [layers, experts], what was
        thought of the next token before.
        """
        return self._taps[layer](np.asarray(hidden).reshape(-1), stage1)


class _StoredTap:
    def __init__(self, arrays: Mapping[str, np.ndarray], name: str) -> None:
        rows = {m: Int8Rows(arrays[f"{name}.{m}"], arrays[f"{name}.{m}_scales"]) for m in MATRICES}
        self._inward, self._outward = (StoredMatrix(rows[m]) for m in MATRICES)
        self._mean, self._scale, self._inward_bias, self._outward_bias, mix = (arrays[f"{name}.{v}"] for v in VECTORS)
        self._before, self._read, self._offset = (np.float32(number) for number in mix)

    def __call__(self, x: np.ndarray, stage1: np.ndarray) -> np.ndarray:
        standard = (x.astype(np.float32) - self._mean) * self._scale
        inner = np.maximum(self._inward.times(standard) + self._inward_bias, 0)
        odds = self._read * (self._outward.times(inner) + self._outward_bias)
        odds += self._before * logit(stage1).reshape(-1) + self._offset
        return sigmoid(odds).reshape(stage1.shape)


def readout_arrays(taps: Mapping[int, Tap]) -> dict[str, np.ndarray]:
    """As they are kept in a predictor's file."""
    arrays: dict[str, np.ndarray] = {}
    for layer, tap in taps.items():
        name = f"{PREFIX}.{layer}"
        for matrix in MATRICES:
            rounded = to_int8(getattr(tap, matrix))
            arrays |= {f"{name}.{matrix}": rounded.values, f"{name}.{matrix}_scales": rounded.scales}
        arrays |= {f"{name}.{vector}": getattr(tap, vector).astype(np.float32) for vector in VECTORS}
    return arrays


def readout_of(arrays: Mapping[str, np.ndarray], layers: int) -> NextTokenReadout | None:
    """The one kept in a predictor's file for a model of so many MoE layers, if one is."""
    kept = [layer for layer in tap_layers(layers) if f"{PREFIX}.{layer}.mix" in arrays]
    return NextTokenReadout(arrays, kept) if kept else None
