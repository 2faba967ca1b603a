"""The compiled sums are numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import kernels
from engine.routing.expectation import expect, expect_by_numpy, list_likely, list_likely_by_numpy

LAYERS, EXPERTS = 5, 7
pytestmark = pytest.mark.skipif(not kernels.available(), reason="no compiled kernels here")


def chances(seed: int) -> np.ndarray:
    """Probabilities, a third of them zero."""
    random = np.random.default_rng(seed)
    made = random.random((LAYERS, EXPERTS), np.float32)
    return made * (random.random((LAYERS, EXPERTS)) > 0.3)


@given(st.integers(0, 1000))
def test_expected_values_are_numpys(seed):
    now, later, phase = chances(seed), chances(seed + 1), chances(seed + 2)[:, 0].copy()
    by_numpy, compiled = np.empty_like(now), np.empty_like(now)
    expect_by_numpy(now, later, phase, by_numpy)
    expect(now, later, phase, compiled)
    np.testing.assert_allclose(compiled, by_numpy, rtol=1e-6)


@given(st.integers(0, 1000), st.integers(0, LAYERS), st.floats(0.05, 1.0))
def test_likely_places_are_numpys(seed, reach, least):
    now, upcoming = chances(seed), chances(seed + 1)
    by_numpy, compiled = (np.zeros(2 * LAYERS * EXPERTS, np.int64) for _ in range(2))
    count = list_likely_by_numpy(now, upcoming, reach, np.float32(least), by_numpy)
    assert list_likely(now, upcoming, reach, np.float32(least), compiled) == count
    assert compiled[:count].tolist() == by_numpy[:count].tolist()
