"""A small network that says more of what was predicted before: p = sigmoid(a logit(before) + b logit(network) + c).

It reads a vector (a residual stream, a predictor's memory) through one hidden layer. `a`, `b`, `c` are fitted by
logistic regression on conversations that the network did not learn from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from engine.model import kernels
from engine.routing.logistic import logit, sigmoid
from engine.routing.predictors.stored_matrix import Int8Rows, to_int8

MATRICES = ("inward", "outward")
VECTORS = ("mean", "scale", "inward_bias", "outward_bias", "mix")


@dataclass(frozen=True, eq=False)
class SmallNetwork:
    """float32, with inputs standardised first.

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

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], name: str) -> SmallNetwork:
        """The one kept under `name`, as eight bits keep it."""
        matrices = (Int8Rows(arrays[f"{name}.{m}"], arrays[f"{name}.{m}_scales"]).widened() for m in MATRICES)
        return cls(*matrices, *(arrays[f"{name}.{vector}"] for vector in VECTORS))

    def odds(self, x: np.ndarray) -> np.ndarray:
        """The network's own log odds, [rows, outputs]; x: [rows, width]."""
        inner = np.maximum((x - self.mean) * self.scale @ self.inward.T + self.inward_bias, 0)
        return np.asarray(inner @ self.outward.T + self.outward_bias)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """As a predictor's file keeps it under `name`: matrices in int8."""
        arrays: dict[str, np.ndarray] = {}
        for matrix in MATRICES:
            rounded = to_int8(getattr(self, matrix))
            arrays |= {f"{name}.{matrix}": rounded.values, f"{name}.{matrix}_scales": rounded.scales}
        return arrays | {f"{name}.{vector}": getattr(self, vector).astype(np.float32) for vector in VECTORS}


def is_stored(arrays: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether a file's arrays hold a network under `name`."""
    return f"{name}.mix" in arrays


class StoredSmallNetwork:
    """One at work, from a file's arrays: a vector at a time."""

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

    def __call__(self, x: np.ndarray, before: np.ndarray) -> np.ndarray:
        """float32, of the shape of `before`, overwritten by the next call. x: float32 [width]; before: float32
        probabilities, as many as the network has outputs.
        """
        flat = before.reshape(-1)
        if self._compiled is None:
            inner = np.maximum(self._wide_inward @ ((x - self._mean) * self._scale) + self._inward_bias, 0)
            of_before, of_read, offset = self._mix
            odds = of_before * logit(flat) + of_read * (self._wide_outward @ inner + self._outward_bias) + offset
            return sigmoid(odds).reshape(before.shape)
        self._compiled(
            x,
            self._mean,
            self._scale,
            (self._inward.values, self._inward.scales),
            self._inward_bias,
            (self._outward.values, self._outward.scales),
            self._outward_bias,
            self._mix,
            flat,
            self._inner,
            self._out,
        )
        return self._out.reshape(before.shape)
