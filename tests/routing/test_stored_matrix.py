"""Matrices stored in eight bits."""

from __future__ import annotations

import numpy as np

from engine.routing.predictors.stored_matrix import to_int8


def test_rounding_is_to_the_nearest_and_bears_empty_rows():
    matrix = np.random.default_rng(0).normal(size=(5, 40))
    matrix[3] = 0
    error = np.abs(to_int8(matrix).widened() - matrix).max(1)
    assert (error <= np.abs(matrix).max(1) / 253).all() and error[3] == 0
    assert to_int8(np.zeros((2, 0))).widened().shape == (2, 0)
