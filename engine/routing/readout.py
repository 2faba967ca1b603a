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

from engine.model import kernels
from engine.routing.logistic import logit, sigmoid
from engine.routing.predictors.stored_matrix import Int8Rows, to_int8

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
    """Taps by the layer they read, ready to be asked: in each two matrices in int8."""

    def __init__(self, arrays: Mapping[str, np.ndarray], layers: Sequence[int]) -> None:
        self._taps = {layer: _StoredTap(arrays, f"{PREFIX}.{layer}") for layer in layers}

    def __contains__(self, layer: int) -> bool:
        return layer in self._taps

    def at(self, layer: int, hidden: Any, stage1: np.ndarray) -> np.ndarray:
        """float32 [layers, experts]: probability that the next token uses the expert.

        hidden: [width] or [1, width], what the router of `layer`, a tap, saw; stage1: [layers, experts], what was
        thought of the next token before.
        """
        return self._taps[layer](np.asarray(hidden, np.float32).reshape(-1), np.asarray(stage1, np.float32))


class _StoredTap:
    def __init__(self, arrays: Mapping[str, np.ndarray], name: str) -> None:
        self._inward, self._outward = (Int8Rows(arrays[f"{name}.{m}"], arrays[f"{name}.{m}_scales"]) for m in MATRICES)
        self._mean, self._scale, self._inward_bias, self._outward_bias, self._mix = (
            arrays[f"{name}.{v}"].astype(np.float32) for v in VECTORS
        )
        self._compiled = None
        if kernels.available():
            from engine.model.kernels.readout import read_out

            self._compiled = read_out
            self._inner, self._out = (np.empty_like(bias) for bias in (self._inward_bias, self._outward_bias))
            self(np.zeros_like(self._mean), np.zeros_like(self._outward_bias))  # compiled before a token waits for it
        else:
            self._wide_inward, self._wide_outward = self._inward.widened(), self._outward.widened()

    def __call__(self, x: np.ndarray, stage1: np.ndarray) -> np.ndarray:
        """The array is overwritten by the next call."""
        before = stage1.reshape(-1)
        if self._compiled is None:
            inner = np.maximum(self._wide_inward @ ((x - self._mean) * self._scale) + self._inward_bias, 0)
            of_before, of_read, offset = self._mix
            odds = of_before * logit(before) + of_read * (self._wide_outward @ inner + self._outward_bias) + offset
            return sigmoid(odds).reshape(stage1.shape)
        self._compiled(
            x,
            self._mean,
            self._scale,
            (self._inward.values, self._inward.scales),
            self._inward_bias,
            (self._outward.values, self._outward.scales),
            self._outward_bias,
            self._mix,
            before,
            self._inner,
            self._out,
        )
        return self._out.reshape(stage1.shape)


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
