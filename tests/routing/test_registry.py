"""Predictors by name or file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.errors import InvalidSetting, PredictorUnusable
from engine.routing.predictors.recurrent import RecurrentPredictor, export
from engine.routing.predictors.recurrent_network import RecurrentNetwork, RecurrentSizes
from engine.routing.predictors.registry import BASELINE_NAMES, PredictorSources, make_predictor
from engine.routing.predictors.weights_file import write_predictor
from tests.routing.synthetic import SHAPE, conversations


def test_every_name_gives_a_predictor_of_the_horizon_asked_for():
    traces = conversations(2)
    sources = PredictorSources(SHAPE, traces, traces, horizon=2)
    for name in BASELINE_NAMES:
        predictor = make_predictor(name, sources)
        predictor.begin()
        assert predictor.predict(0).shape == (2, SHAPE.layers, SHAPE.experts) and predictor.horizon == 2


def test_a_file_is_read_for_its_own_model_only(tmp_path):
    sizes = RecurrentSizes(horizon=1, token_width=4, state_width=4, head_width=4)
    stored = export(RecurrentNetwork(SHAPE, sizes), np.array([[1.0, 0.0]]), "mine")
    file = tmp_path / "p.safetensors"
    write_predictor(file, stored)
    assert isinstance(make_predictor(str(file), PredictorSources(SHAPE, model="mine")), RecurrentPredictor)
    with pytest.raises(PredictorUnusable, match="model mine"):
        make_predictor(str(file), PredictorSources(SHAPE, model="other"))
    write_predictor(file, replace(stored, kind="oracle bone"))
    with pytest.raises(PredictorUnusable, match="oracle bone"):
        make_predictor(str(file), PredictorSources(SHAPE))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InvalidSetting, match="none, previous, table, oracle"):
        make_predictor("crystal ball", PredictorSources(SHAPE))
