"""What the rows of joint passes will touch: by frequency, by predictions for each row, by the routers ahead."""

from __future__ import annotations

import numpy as np
import pytest

from engine.routing.blend import Blend, routers_alone
from engine.routing.touching import (
    blend_rows,
    blend_rows_by_numpy,
    list_due,
    list_due_by_numpy,
    touched_by_any,
)
from engine.routing.wave_correction import WaveBlend
from engine.routing.wave_forecast import WaveForecast

LAYERS, EXPERTS, TOP_K = 4, 6, 2


def read_pass(forecast: WaveForecast, routing: np.ndarray, expected: np.ndarray | None = None) -> None:
    """routing: [rows, layers, top k]."""
    forecast.begin_pass(expected)
    for layer in range(LAYERS):
        forecast.observed(layer, np.zeros((len(routing), 1), np.float32), routing[:, layer])


def test_an_expert_that_many_rows_use_is_due_and_the_more_rows_the_more():
    forecast = WaveForecast(LAYERS, EXPERTS, TOP_K)
    few = np.tile(np.array([0, 1]), (2, LAYERS, 1))
    for _ in range(100):
        read_pass(forecast, few)
    assert (forecast.due[:, :2] > 0.95).all()
    assert (forecast.due[:, 2:] < 0.1).all()
    mixed = np.stack([few[0]] * 7 + [few[0] + 2])
    for _ in range(60):
        read_pass(forecast, mixed)
    assert (forecast.due[:, 2:4] > 0.5).all()  # an eighth of the rows, but there are eight
    assert (forecast.due[:, 4:] < 0.2).all()


def test_what_was_just_computed_with_is_needed_last():
    forecast = WaveForecast(LAYERS, EXPERTS, TOP_K)
    routing = np.tile(np.array([[[0, 1]], [[2, 3]]]), (1, LAYERS, 1))
    for _ in range(100):
        read_pass(forecast, routing)
    forecast.begin_pass()
    for layer in range(LAYERS):
        forecast.observed(layer, None, routing[:, layer])
        around = [forecast.value[(layer + 1 + ahead) % LAYERS, :4].mean() for ahead in range(LAYERS)]
        assert around == sorted(around, reverse=True)
        assert forecast.value[:, 4:].max() < forecast.value[:, :4].min()


def test_each_rows_predictions_count_for_this_pass_and_the_next():
    forecast = WaveForecast(LAYERS, EXPERTS, TOP_K)
    expected = np.full((3, 2, LAYERS, EXPERTS), 0.01, np.float32)
    expected[0, 0, :, 5] = 0.9
    expected[1, 0, :, 5] = 0.5
    expected[2, 1, :, 4] = 0.8
    forecast.begin_pass(expected)
    assert forecast.due[:, 5] == pytest.approx(1 - 0.1 * 0.5 * 0.99)
    forecast.observed(0, None, np.array([[0, 1]] * 3))
    assert forecast.due[0, 4] == pytest.approx(1 - 0.2 * 0.99 * 0.99)
    assert forecast.due[1, 5] > 0.9
    forecast.begin_pass()  # without predictions: what was foretold before is forgotten
    forecast.observed(0, None, np.array([[0, 1]] * 3))
    assert forecast.due[0, 4] < 0.8


class Sees:
    """A correction that knows the next layer."""

    def __init__(self, ahead: np.ndarray) -> None:
        self.asked: list[tuple[int, tuple[int, ...]]] = []
        self._ahead = ahead

    def touched_ahead(self, layer, hidden, stage1):
        self.asked.append((layer, hidden.shape))
        return self._ahead[: LAYERS - 1 - layer]


def test_the_routers_ahead_correct_it_where_the_hidden_state_is_told():
    sees = Sees(np.full((1, EXPERTS), 0.77, np.float32))
    forecast = WaveForecast(LAYERS, EXPERTS, TOP_K, sees)
    hidden = np.zeros((3, 8), np.float32)
    forecast.begin_pass()
    forecast.observed(0, hidden, np.zeros((3, TOP_K), np.int64))
    assert forecast.due[1] == pytest.approx(0.77)
    forecast.observed(1, hidden, np.zeros((3, TOP_K), np.int64))  # not asked in every layer
    forecast.observed(2, None, np.zeros((3, TOP_K), np.int64))
    assert sees.asked == [(0, (3, 8))]


def test_ids_that_mean_nobody_are_nobody():
    forecast = WaveForecast(LAYERS, EXPERTS, TOP_K)
    forecast.begin_pass()
    forecast.observed(0, None, np.array([[0, -1], [EXPERTS, 1]]))
    assert forecast.due.shape == (LAYERS, EXPERTS) and np.isfinite(forecast.value).all()


def test_a_rows_probabilities_add_up_to_the_experts_it_uses():
    """One row of which stage 1 and the routers say too little: scaled to top k, its order kept."""
    blend = WaveBlend(Blend(np.tile([1.0, 0.0, -2.0], (2, LAYERS, 1))), TOP_K)
    stage1 = np.linspace(0.1, 0.3, EXPERTS, dtype=np.float32) * np.ones((1, LAYERS, 1), np.float32)
    touched = blend(0, np.full((1, 2, EXPERTS), 1 / EXPERTS, np.float32), stage1)
    assert touched.shape == (2, EXPERTS)
    assert touched.sum(-1) == pytest.approx(TOP_K, rel=1e-4)
    assert (np.diff(touched) > 0).all()
    assert blend(LAYERS - 1, np.zeros((1, 2, EXPERTS), np.float32), stage1).shape == (0, EXPERTS)


def test_routers_that_are_sure_are_believed():
    blend = WaveBlend(routers_alone(LAYERS, TOP_K), TOP_K)
    ahead = np.full((2, 2, EXPERTS), 0.001, np.float32)
    ahead[0, :, :2] = ahead[1, :, 2:4] = 0.49
    touched = blend(1, ahead, np.full((1, LAYERS, EXPERTS), TOP_K / EXPERTS, np.float32))
    assert (touched[:, :4] > 0.9).all() and (touched[:, 4:] < 0.05).all()


@pytest.mark.parametrize("seed", range(5))
def test_compiled_and_plain_agree(seed):
    random = np.random.default_rng(seed)
    due = random.random((LAYERS, EXPERTS)).astype(np.float32).round(1)  # with ties
    absent = np.where(random.random(due.size) < 0.5, 0, np.inf).astype(np.float32)
    for most in (2, 7, 64):
        lists = []
        for fill in (list_due, list_due_by_numpy):
            places = np.zeros(most, np.int64)
            count = fill(due, absent, int(seed % LAYERS), np.float32(0.3), places)
            lists.append(places[:count].tolist())
        assert lists[0] == lists[1]
    ahead = random.dirichlet(np.ones(EXPERTS), (5, 3)).astype(np.float32)
    stage1 = random.random((5, 3, EXPERTS)).astype(np.float32)
    coefficients = random.normal(size=(3, 3)).astype(np.float32)
    for rows in (5, 1):
        found = [np.empty((3, EXPERTS), np.float32) for _ in range(2)]
        for fill, touched in zip((blend_rows, blend_rows_by_numpy), found, strict=True):
            fill(ahead, stage1[:rows], coefficients, np.float32(2), np.float32(0.999), touched)
        np.testing.assert_allclose(found[0], found[1], rtol=2e-3, atol=2e-5)
    assert touched_by_any(stage1) == pytest.approx(1 - (1 - stage1).prod(0), rel=1e-4)
