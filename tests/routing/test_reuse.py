"""How soon an expert is used again: by frequency, and by what a predictor remembers."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import Cancelled
from engine.routing.forecast import Forecast
from engine.routing.frequency import HALF_LIFE, ExpertFrequency
from engine.routing.predictors.baselines import PreviousToken
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.reuse import expected_by_frequency, reuse_arrays, reuse_of, reuse_targets, stored_reuse
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace
from engine.routing.training.reuse_training import fit_reuse
from engine.routing.training.small_network_training import SmallNetworkSettings
from tests.routing.guesses import Told

SHAPE = RoutingShape(layers=2, experts=4, top_k=1, vocabulary=8)
SETTINGS = SmallNetworkSettings(units=16, epochs=20, batch=64, dropout=0.0)


class Remembering(PreviousToken):
    """Its memory is the token's id, which says which expert is used two tokens later."""

    def begin(self) -> None:
        super().begin()
        self._memory = np.zeros(SHAPE.vocabulary, np.float32)

    @property
    def memory(self) -> np.ndarray:
        return self._memory

    def predict(self, token_id: int) -> np.ndarray:
        self._memory[:] = np.arange(SHAPE.vocabulary) == token_id
        return super().predict(token_id)


class Blind(Remembering):
    """Remembers nothing that helps."""

    def predict(self, token_id: int) -> np.ndarray:
        said = super().predict(token_id)
        self._memory[:] = 0
        return said


def told_early(count: int, seed: int) -> list[RoutingTrace]:
    """Conversations in which a token's expert is the id, modulo the experts, of the token two before it."""
    chance, made = np.random.default_rng(seed), []
    for number in range(count):
        ids = chance.integers(SHAPE.vocabulary, size=60).astype(np.int32)
        chosen = np.concatenate([[0, 0], ids[:-2] % SHAPE.experts]).astype(np.int16)
        experts = np.repeat(chosen[:, None, None], SHAPE.layers, axis=1)
        ones = np.ones(experts.shape, np.float16)
        made.append(RoutingTrace(f"{seed}-{number}", ids, experts, ones, np.ones(60, bool)))
    return made


def remembering(kind: type[Remembering] = Remembering) -> RoutingPredictor:
    made = kind(SHAPE, horizon=2)
    made.begin()
    return made


def test_what_a_use_is_worth_falls_with_each_token_until_then():
    used = np.zeros((4, 1, 2))
    used[2, 0, 0] = used[0, 0, 1] = 1
    assert reuse_targets(used)[:, 0].tolist() == [[0.25, 1], [0.5, 0], [1, 0], [0, 0]]


def test_by_frequency_is_what_the_targets_are_on_average():
    chance = np.random.default_rng(0)
    used = (chance.random((4000, 1, 3)) < np.array([0.1, 0.5, 0.9])).astype(np.float32)
    found = reuse_targets(used)[:-20].mean(0)
    assert found == pytest.approx(expected_by_frequency(np.array([[0.1, 0.5, 0.9]])), abs=0.02)


def test_a_frequency_follows_what_is_used():
    frequency = ExpertFrequency(SHAPE)
    used = np.zeros((SHAPE.layers, SHAPE.experts), np.float32)
    used[:, 1] = 1
    for _ in range(int(HALF_LIFE)):
        frequency.count(used)
    assert frequency.values[0] == pytest.approx([0.125, 0.625, 0.125, 0.125])


def test_a_memory_that_tells_is_believed():
    network = fit_reuse(remembering(), told_early(30, 0), told_early(6, 1), SETTINGS)
    assert network is not None
    reuse = reuse_of(reuse_arrays(network))
    assert reuse is not None
    by_frequency = np.full((SHAPE.layers, SHAPE.experts), 0.4, np.float32)
    memory = np.zeros(SHAPE.vocabulary, np.float32)
    memory[6] = 1
    said = reuse(memory, by_frequency)
    assert (said[:, 2] > 0.9).all() and (np.delete(said, 2, axis=1) < 0.7).all()


def test_a_network_that_knew_more_stays():
    knowing = fit_reuse(remembering(), told_early(30, 0), told_early(6, 1), SETTINGS)
    start = stored_reuse(reuse_arrays(knowing)) if knowing else None
    after = fit_reuse(remembering(), told_early(1, 2), told_early(6, 3), SETTINGS, start)
    assert start is not None and after is not None
    np.testing.assert_array_equal(after.inward, start.inward)
    assert fit_reuse(remembering(), [], [], SETTINGS, start) is start


def test_without_a_memory_there_is_none():
    known = told_early(4, 0)
    assert fit_reuse(PreviousToken(SHAPE, 2), known, known, SETTINGS) is None
    assert reuse_of({}) is None and stored_reuse({}) is None


def test_a_memory_that_says_nothing_leaves_the_frequency():
    network = fit_reuse(remembering(Blind), told_early(10, 0), told_early(6, 1), SETTINGS)
    assert network is not None
    reuse = reuse_of(reuse_arrays(network))
    assert reuse is not None
    said = reuse(np.zeros(SHAPE.vocabulary, np.float32), np.full((SHAPE.layers, SHAPE.experts), 0.4, np.float32))
    assert said == pytest.approx(np.full(said.shape, 0.4), abs=0.1)


def test_training_can_be_left():
    known = told_early(4, 0)
    with pytest.raises(Cancelled):
        fit_reuse(remembering(), known, known, SETTINGS, must_stop=lambda: True)


class SaysLast:
    """Is sure that the last expert is used right after the next token."""

    def __call__(self, memory, by_frequency):
        return np.eye(SHAPE.experts, dtype=np.float32)[-1] * np.ones_like(by_frequency)


def test_the_forecast_values_by_it_where_nothing_nearer_is_predicted():
    told = Told(np.zeros((2, SHAPE.layers, SHAPE.experts)))
    told.memory = np.zeros(3, np.float32)
    forecast = Forecast(SHAPE, told, reuse=SaysLast())
    forecast.predict(1)
    forecast.begin_step()
    assert (forecast.value.argmax(1) == SHAPE.experts - 1).all()
    assert forecast.value[0, -1] == 0.25
