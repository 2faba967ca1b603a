"""The readout: what a layer's router input says of the next token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.errors import Cancelled
from engine.model import kernels
from engine.routing.forecast import Forecast
from engine.routing.predictors.baselines import NoPrediction, PreviousToken
from engine.routing.readout import NextTokenReadout, readout_arrays, readout_of, tap_layers
from engine.routing.scoring.evaluation_readout import evaluate_readout
from engine.routing.shape import RoutingShape
from engine.routing.small_network import SmallNetwork
from engine.routing.training.readout_training import fit_readout
from engine.routing.training.small_network_training import SmallNetworkSettings
from tests.routing.guesses import Told
from tests.routing.synthetic import conversations

SETTINGS = SmallNetworkSettings(units=64, epochs=30, batch=64, dropout=0.0)
WIDTH = 12
SHAPE = RoutingShape(layers=12, experts=8, top_k=2, vocabulary=24)


def knowing(count: int, seed: int):
    """Conversations whose last tapped layer sees the next token's id, whose first tells nothing."""
    code = np.random.default_rng(5).normal(size=(SHAPE.vocabulary, WIDTH))
    chance = np.random.default_rng(seed)
    for trace in conversations(count, seed=seed, shape=SHAPE):
        midway = chance.normal(size=(len(trace), len(tap_layers(SHAPE.layers)), WIDTH))
        midway[:-1, -1] = 40 * code[trace.token_ids[1:]] + 3
        yield replace(trace, midway=midway.astype(np.float16))


def test_taps_are_spread_over_the_layers():
    assert tap_layers(30) == (12, 20, 24)
    assert tap_layers(2) == (0,)
    assert tap_layers(1) == (0,)


def test_a_layer_that_knows_the_next_token_is_believed_and_one_that_does_not_is_not():
    predictor = PreviousToken(SHAPE, horizon=3)
    taps = fit_readout(predictor, list(knowing(40, 0)), list(knowing(6, 1)), SETTINGS, {})
    readout = readout_of(readout_arrays(taps), SHAPE.layers)
    assert readout is not None
    found = {one["layer"]: one["recall"]["2"] for one in evaluate_readout(predictor, readout, list(knowing(6, 2)))}
    layers = tap_layers(SHAPE.layers)
    assert tuple(found) == layers
    assert found[layers[-1]] > 0.6 > 0.45 > found[layers[0]]
    errors = [one["calibration_error"] for one in evaluate_readout(predictor, readout, list(knowing(6, 2)))]
    assert max(errors) < 0.1


@pytest.mark.parametrize("compiled", [True, False])
def test_eight_bits_say_what_the_network_says(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(kernels, "available", lambda: False)
    random = np.random.default_rng(0)
    tap = SmallNetwork(
        *(random.normal(size=size).astype(np.float32) for size in ((16, WIDTH), (12, 16), WIDTH)),
        np.full(WIDTH, 0.5, np.float32),
        *(random.normal(size=size).astype(np.float32) for size in (16, 12)),
        np.array([0.5, 1.5, -0.2]),
    )
    x, before = random.normal(size=WIDTH), np.full((3, 4), 0.3)
    inner = np.maximum(tap.inward @ ((x - tap.mean) * tap.scale) + tap.inward_bias, 0)
    odds = 0.5 * np.log(0.3 / 0.7) + 1.5 * (tap.outward @ inner + tap.outward_bias) - 0.2
    found = NextTokenReadout(readout_arrays({2: tap}), [2]).at(2, x[None].astype(np.float32), before)
    np.testing.assert_allclose(found.reshape(-1), 1 / (1 + np.exp(-odds)), atol=0.03)


def test_without_what_it_needs_there_is_none():
    plain = conversations(4, shape=SHAPE)
    assert fit_readout(PreviousToken(SHAPE, 3), plain, plain, SETTINGS, {}) == {}
    told = list(knowing(4, 0))
    assert fit_readout(NoPrediction(SHAPE, 1), told, told, SETTINGS, {}) == {}
    assert readout_of({}, SHAPE.layers) is None


def test_training_can_be_left():
    told = list(knowing(4, 0))
    with pytest.raises(Cancelled):
        fit_readout(PreviousToken(SHAPE, 3), told, told, SETTINGS, {}, must_stop=lambda: True)


class Certain:
    """Knows in layer 1 that the next token takes expert 3 of layer 0."""

    def __contains__(self, layer: int) -> bool:
        return layer == 1

    def at(self, layer, hidden, stage1):
        said = np.zeros_like(stage1)
        said[0, 3] = 1
        return said


def test_the_forecast_takes_over_what_a_tapped_layer_says():
    rows = np.zeros((2, 3, 4), np.float32)
    rows[1, 0, 2] = 0.9
    forecast = Forecast(RoutingShape(3, 4, 2, 100), Told(rows), readout=Certain())
    forecast.predict(1)
    forecast.begin_step()
    seen, chosen, weights = np.zeros((1, 5), np.float32), np.array([0, 1]), np.array([0.6, 0.4])
    forecast.observed(0, seen, chosen, weights)
    assert forecast.next[0].argmax() == 2
    assert forecast.value[0].argmax() == 2
    forecast.observed(1, seen, chosen, weights)
    assert forecast.next[0].tolist() == [0, 0, 0, 1]
    assert forecast.value[0].argmax() == 3
