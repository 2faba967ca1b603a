"""Probabilities as log odds and back."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import inlined
from engine.model.kernels.exponential import exp

_SMALLEST = np.float32(1e-6)  # as in fits: probabilities are kept so far from 0 and 1


@inlined
def logit(probability):
    """log(p / (1 - p)), float32."""
    kept = min(max(probability, _SMALLEST), np.float32(1) - _SMALLEST)
    return np.float32(np.log(kept / (np.float32(1) - kept)))


@inlined
def sigmoid(odds):
    """1 / (1 + exp(-odds)), float32."""
    return np.float32(1) / (np.float32(1) + exp(-odds))
