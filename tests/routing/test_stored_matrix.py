"""Products of matrices stored in eight bits, compiled and in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from engine.routing.predictors import stored_matrix
from engine.routing.predictors.stored_matrix import Int8Rows, StoredMatrix, StoredRows, to_int8


@pytest.fixture(params=["kernels", "numpy"], autouse=True)
def products(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(stored_matrix.kernels, "available", lambda: False)


def random_rows(rows: int, width: int) -> Int8Rows:
    chance = np.random.default_rng(0)
    values = chance.integers(-127, 128, (rows, width)).astype(np.int8)
    return Int8Rows(values, chance.uniform(0.001, 0.1, rows).astype(np.float32))


def test_a_matrix_times_a_vector():
    rows, x = random_rows(37, 21), np.random.default_rng(1).normal(size=21).astype(np.float32)
    exact = (rows.values.astype(np.float64) * rows.scales[:, None]) @ x
    assert StoredMatrix(rows).times(x) == pytest.approx(exact, abs=1e-4)


def test_rows_are_added_to_what_is_there():
    rows, out = random_rows(9, 33), np.ones(33, np.float32)
    places, weights = np.array([7, 0, 7]), np.array([0.5, -1, 2], np.float32)
    StoredRows(rows).add(places, weights, out)
    exact = rows.values.astype(np.float64) * rows.scales[:, None]
    assert out == pytest.approx(1 + 2.5 * exact[7] - exact[0], abs=1e-4)
    StoredRows(rows).add(places[:0], weights[:0], out)


def test_rounding_is_to_the_nearest_and_bears_empty_rows():
    matrix = np.random.default_rng(0).normal(size=(5, 40))
    matrix[3] = 0
    error = np.abs(to_int8(matrix).widened() - matrix).max(1)
    assert (error <= np.abs(matrix).max(1) / 253).all() and error[3] == 0
    assert to_int8(np.zeros((2, 0))).widened().shape == (2, 0)
