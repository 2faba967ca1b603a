"""Products of stored fp16 matrices, compiled and in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from engine.routing.predictors import stored_matrix
from engine.routing.predictors.stored_matrix import StoredMatrix, StoredRows


@pytest.fixture(params=["kernels", "numpy"], autouse=True)
def products(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(stored_matrix.kernels, "available", lambda: False)


def test_a_matrix_times_a_vector():
    chance = np.random.default_rng(0)
    values, x = chance.normal(size=(37, 21)).astype(np.float16), chance.normal(size=21).astype(np.float32)
    assert StoredMatrix(values).times(x) == pytest.approx(values.astype(np.float64) @ x, abs=1e-4)


def test_rows_are_added_to_what_is_there():
    chance = np.random.default_rng(0)
    values, out = chance.normal(size=(9, 33)).astype(np.float16), np.ones(33, np.float32)
    places, weights = np.array([7, 0, 7]), np.array([0.5, -1, 2], np.float32)
    StoredRows(values).add(places, weights, out)
    assert out == pytest.approx(1 + 2.5 * values[7].astype(np.float64) - values[0], abs=1e-4)
    StoredRows(values).add(places[:0], weights[:0], out)
