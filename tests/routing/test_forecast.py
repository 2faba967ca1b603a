"""The forecast: what is routed is no guess any more, and value orders experts by their next use."""

from __future__ import annotations

import numpy as np

from engine.routing.forecast import Forecast, correcting_layers
from engine.routing.shape import RoutingShape
from tests.routing.guesses import Told

LAYERS, EXPERTS = 3, 4
SHAPE = RoutingShape(LAYERS, EXPERTS, 2, vocabulary=100)
NOTHING = np.zeros((LAYERS, EXPERTS))
WEIGHTS = np.array([0.6, 0.4])


def only(*places: tuple[int, int], probability: float = 1.0) -> np.ndarray:
    row = NOTHING.copy()
    for place in places:
        row[place] = probability
    return row


def forecast(*rows: np.ndarray, **arguments) -> Forecast:
    made = Forecast(SHAPE, Told(np.stack(rows)), **arguments)
    made.predict(7)
    made.begin_step()
    return made


def test_a_routed_layer_is_no_guess_any_more():
    made = forecast(only((0, 1), (1, 2)))
    made.observed(0, None, np.array([1, 3]), WEIGHTS)
    assert made.now[0].tolist() == [0, 0, 0, 0]
    assert made.now[1].tolist() == [0, 0, 1, 0]


def test_what_is_used_sooner_is_worth_more():
    made = forecast(only((1, 0)), only((1, 1)), only((1, 2)))
    value = made.value[1]
    assert value[0] > value[1] > value[2] > value[3] > 0


def test_between_two_layers_of_this_token_the_nearer_is_worth_more():
    made = forecast(only((0, 0), (2, 0)))
    assert made.value[0, 0] == 1
    assert 0.5 < made.value[2, 0] < 1


def test_the_next_tokens_first_layer_is_nearer_than_its_last_once_this_token_is_halfway(monkeypatch):
    monkeypatch.setattr("engine.routing.forecast.CORRECTED_EVERY", 1)  # values follow the layers that correct
    made = forecast(NOTHING, only((0, 0), (2, 0)))
    made.observed(0, None, np.array([1, 3]), WEIGHTS)
    made.observed(1, None, np.array([1, 3]), WEIGHTS)
    made.observed(2, None, np.array([1, 3]), WEIGHTS)
    assert made.value[0, 0] > made.value[2, 0] > made.value[1, 0]


def test_where_nothing_is_predicted_the_frequent_are_worth_more():
    made = forecast(NOTHING)
    for _ in range(30):
        made.predict(7)
        made.begin_step()
        for layer in range(LAYERS):
            made.observed(layer, None, np.array([2, 3]), WEIGHTS)
        made.end_step()
    made.predict(7)
    made.begin_step()
    assert (made.value[:, 2:].min(1) > made.value[:, :2].max(1)).all()


def test_the_predictor_is_shown_what_was_used_and_nobody_is_not_an_expert():
    told = Told(np.stack([NOTHING]))
    made = Forecast(SHAPE, told)
    made.predict(7)
    made.begin_step()
    for layer in range(LAYERS):
        made.observed(layer, None, np.array([layer, -1]), WEIGHTS)
    made.end_step()
    assert told.shown[0].tolist() == [[0, -1], [1, -1], [2, -1]]


class LastColumn:
    """Stage 2 that is sure of the last expert of the next layer."""

    distances = 1

    def ahead(self, layer, hidden, now):
        return only((0, 3))[:1] if layer + 1 < LAYERS else np.zeros((0, EXPERTS))


def test_the_correction_replaces_what_was_thought_of_the_next_layer_alone():
    made = forecast(only((1, 0), (2, 0)), correction=LastColumn())
    made.observed(0, np.zeros(1), np.array([1, 3]), WEIGHTS)
    assert made.now[1].tolist() == [0, 0, 0, 1]
    assert made.now[2].tolist() == [1, 0, 0, 0]
    made.observed(2, np.zeros(1), np.array([1, 3]), WEIGHTS)  # the last layer has none ahead


def test_the_first_layer_of_a_deep_model_corrects_nothing():
    assert list(correcting_layers(3)) == [0]
    assert list(correcting_layers(12)) == [4, 8]


def test_value_is_a_share():
    random = np.random.default_rng(0)
    made = forecast(*random.random((3, LAYERS, EXPERTS)))
    assert made.value.min() > 0 and made.value.max() <= 1
