"""How good predictions of routing are: recall and precision for each token, and whether probabilities mean something.

Everything is counted token by token. (OR-ing the tokens of a batch before comparing, as arXiv 2410.17954 does,
flatters: with top-2 of 16 and a batch of 8, guessing at random already recalls two thirds.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15


class Scores:
    """Sums over the tokens added so far, for predictions of [layers, experts] at one distance."""

    def __init__(self, layers: int, experts: int, ks: Sequence[int]) -> None:
        self.ks = tuple(sorted({min(k, experts) for k in ks}))
        self.tokens = 0
        self._found = np.zeros((layers, len(self.ks)))
        self._named = np.zeros((layers, len(self.ks)))
        self._used = np.zeros(layers)
        self._bins = np.zeros((3, BINS))  # how many, sum of probabilities, how many used

    def add(self, probabilities: np.ndarray, used: np.ndarray, first_layer: int = 0) -> None:
        """probabilities: float [layers, experts] of one token; used: 0 or 1, what it really used; same shape.

        Both begin with `first_layer`. An expert of probability 0 is never named, however large k.
        """
        rows = slice(first_layer, None)
        self.tokens += 1
        self._used[rows] += used.sum(-1)
        order = np.argsort(-probabilities, axis=-1, kind="stable")[:, : self.ks[-1]]
        named = np.take_along_axis(probabilities, order, axis=-1) > 0
        right = np.cumsum(np.take_along_axis(used, order, axis=-1) * named, axis=-1)
        at = [k - 1 for k in self.ks]
        self._found[rows] += right[:, at]
        self._named[rows] += np.cumsum(named, axis=-1)[:, at]
        bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1).reshape(-1)
        for row, values in enumerate((None, probabilities.reshape(-1), used.reshape(-1))):
            self._bins[row] += np.bincount(bins, values, BINS)

    def recall(self, k: int) -> float:
        """Share of the used experts that were among the k likeliest of their layer."""
        return _ratio(self._found[:, self.ks.index(k)].sum(), self._used.sum())

    def precision(self, k: int) -> float:
        """Share of the experts named among the k likeliest that were used."""
        column = self.ks.index(k)
        return _ratio(self._found[:, column].sum(), self._named[:, column].sum())

    def recall_by_layer(self, k: int) -> list[float]:
        """The same for each layer alone."""
        return [_ratio(*pair) for pair in zip(self._found[:, self.ks.index(k)], self._used, strict=True)]

    def calibration_error(self) -> float:
        """Expected calibration error: mean distance of probability and frequency, bins weighted by their size."""
        count, probability, used = self._bins
        return _ratio(np.abs(probability - used).sum(), count.sum())

    def reliability(self) -> list[dict[str, float]]:
        """For each bin that is not empty: how many, their mean probability, how often they were used."""
        return [
            {"count": int(count), "probability": float(probability / count), "frequency": float(used / count)}
            for count, probability, used in self._bins.T
            if count
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            "tokens": self.tokens,
            "recall": {str(k): self.recall(k) for k in self.ks},
            "precision": {str(k): self.precision(k) for k in self.ks},
            "recall_by_layer": self.recall_by_layer(self.ks[0]),
            "calibration_error": self.calibration_error(),
            "reliability": self.reliability(),
        }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
