"""The compiled sums are numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import kernels
from engine.routing.expectation import (
    any_turned_likely,
    any_turned_likely_by_numpy,
    expect,
    expect_by_numpy,
    least_valued,
    least_valued_by_numpy,
    list_least_valued,
    list_least_valued_by_numpy,
    list_likely,
    list_likely_by_numpy,
)

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


@given(st.integers(0, 1000), st.floats(0.05, 1.0))
def test_likely_places_are_numpys(seed, least):
    now, upcoming = chances(seed), chances(seed + 1)
    urgency, absent = np.ascontiguousarray(chances(seed + 2)[:, :2].T), chances(seed + 3).reshape(-1)
    by_numpy, compiled = (np.zeros(2 * LAYERS * EXPERTS, np.int64) for _ in range(2))
    count = list_likely_by_numpy(now, upcoming, absent, urgency, np.float32(least), by_numpy)
    assert list_likely(now, upcoming, absent, urgency, np.float32(least), compiled) == count
    assert compiled[:count].tolist() == by_numpy[:count].tolist()


@given(st.integers(0, 1000), st.floats(0.05, 1.0))
def test_whether_any_turned_likely_is_numpys(seed, least):
    now, before, absent = chances(seed), chances(seed + 1), chances(seed + 2).reshape(-1)
    found = any_turned_likely_by_numpy(now, before, absent, np.float32(least))
    assert any_turned_likely(now, before, absent, np.float32(least)) == found
    assert not any_turned_likely(now, now, absent, np.float32(least))


@given(st.integers(0, 1000), st.integers(0, LAYERS * EXPERTS))
def test_the_least_valued_is_numpys(seed, held):
    value, absent = chances(seed).reshape(-1), np.full(LAYERS * EXPERTS, np.inf, np.float32)
    absent[np.random.default_rng(seed).permutation(len(absent))[:held]] = 0
    found = least_valued(value, absent)
    assert found == least_valued_by_numpy(value, absent)
    assert (found >= 0) == (held > 0)
    assert found < 0 or absent[found] == 0


@given(st.integers(0, 1000), st.integers(0, LAYERS * EXPERTS), st.integers(1, 9))
def test_the_list_of_the_least_valued_is_numpys(seed, held, most):
    value, absent = chances(seed).reshape(-1), np.full(LAYERS * EXPERTS, np.inf, np.float32)
    absent[np.random.default_rng(seed).permutation(len(absent))[:held]] = 0
    by_numpy, compiled = np.zeros(most, np.int64), np.zeros(most, np.int64)
    count = list_least_valued_by_numpy(value, absent, by_numpy)
    assert list_least_valued(value, absent, compiled) == count == min(most, held)
    assert value[compiled[:count]].tolist() == value[by_numpy[:count]].tolist()  # equal values in any order
    assert (absent[compiled[:count]] == 0).all() and len(set(compiled[:count].tolist())) == count


def test_likelier_and_sooner_comes_first():
    now, upcoming = np.zeros((2, LAYERS, EXPERTS), np.float32)
    now[0, 0], now[4, 1], now[4, 2], upcoming[0, 3] = 0.4, 0.9, 0.3, 0.8
    urgency = np.exp(-np.arange(2 * LAYERS, dtype=np.float32) / LAYERS).reshape(2, LAYERS)
    places = np.zeros(2 * LAYERS * EXPERTS, np.int64)
    absent = np.ones(LAYERS * EXPERTS, np.float32)
    count = list_likely(now, upcoming, absent, urgency, np.float32(0.35), places)
    assert places[:count].tolist() == [3, 0, 4 * EXPERTS + 1]  # 0.8 / e, 0.4, 0.9 / e^0.8
    absent[0] = 0
    count = list_likely(now, upcoming, absent, urgency, np.float32(0.35), places)
    assert places[:count].tolist() == [3, 4 * EXPERTS + 1]
