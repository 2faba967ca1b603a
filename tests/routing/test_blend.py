"""Stage 2: routers asked ahead of time, alone and mixed with what was predicted before the step."""

from __future__ import annotations

import numpy as np
import pytest

from engine.routing.blend import Blend, blend_of, fit_blend
from engine.routing.logistic import logit, sigmoid
from engine.routing.predictors.baselines import NoPrediction, Oracle
from engine.routing.predictors.token_table import fit_token_table
from engine.routing.scoring.evaluation_ahead import evaluate_ahead
from tests.routing.synthetic import SHAPE, conversations


def test_it_computes_its_formula_for_each_layer_and_distance():
    chance = np.random.default_rng(0)
    blend = Blend(chance.normal(size=(3, SHAPE.layers, 3)))
    stage1 = chance.random((SHAPE.layers, SHAPE.experts))
    ahead = chance.random((3, SHAPE.experts))
    for layer, reach in ((0, 3), (3, 2), (4, 1), (5, 0)):
        mixed = blend(layer, stage1, ahead)
        assert mixed.shape == (reach, SHAPE.experts)
        for distance in range(1, reach + 1):
            a, b, c = blend.coefficients[distance - 1, layer + distance]
            odds = a * logit(stage1[layer + distance]) + b * logit(ahead[distance - 1]) + c
            assert mixed[distance - 1] == pytest.approx(sigmoid(odds), rel=1e-5)


def test_a_whole_step_at_once_is_layer_by_layer():
    (trace,) = conversations(1, 5, distances=3)
    assert trace.ahead is not None
    chance = np.random.default_rng(0)
    blend = Blend(chance.normal(size=(3, SHAPE.layers, 3)))
    stage1 = chance.random((SHAPE.layers, SHAPE.experts))
    whole = blend.by_distance(stage1, trace.ahead[2])
    for layer in range(SHAPE.layers):
        for distance, mixed in enumerate(blend(layer, stage1, trace.ahead[2, layer]), 1):
            assert np.allclose(whole[distance - 1][layer], mixed)


def test_both_together_beat_either_and_nearer_routers_know_more():
    known, chosen, asked = (conversations(n, seed=s, distances=3) for n, s in ((30, 0), (8, 4), (5, 9)))
    table = fit_token_table(SHAPE, known)
    blend = fit_blend(table, chosen)
    assert blend is not None and blend.distances == 3
    rows = evaluate_ahead(table, blend, asked)
    recall = {source: [row[source]["recall"]["2"] for row in rows] for source in ("before", "router", "blend")}
    for both, before, router in zip(recall["blend"], recall["before"], recall["router"], strict=True):
        assert both > max(before, router) + 0.005
    assert recall["router"] == sorted(recall["router"], reverse=True)
    assert all(row["blend"]["calibration_error"] < 0.03 for row in rows)


def test_weights_follow_who_is_right():
    traces = conversations(4, distances=2)
    told_by_oracle = fit_blend(Oracle(SHAPE, traces), traces)
    told_by_routers = fit_blend(NoPrediction(SHAPE), traces)
    assert told_by_oracle is not None and told_by_routers is not None
    assert evaluate_ahead(Oracle(SHAPE, traces), told_by_oracle, traces)[1]["blend"]["recall"]["2"] == 1
    rows = evaluate_ahead(NoPrediction(SHAPE), told_by_routers, traces)
    assert [row["blend"]["recall"] for row in rows] == [row["router"]["recall"] for row in rows]


def test_without_routers_probabilities_there_is_none():
    assert fit_blend(NoPrediction(SHAPE), conversations(2)) is None
    assert blend_of({}) is None


def test_layers_are_told_apart_as_far_as_there_is_data():
    (trace,) = conversations(1, 400, distances=1)
    assert trace.ahead is not None
    trace.ahead[:, 2] = 1 / SHAPE.experts  # this layer's view of the next says nothing
    blend = fit_blend(fit_token_table(SHAPE, [trace]), [trace])
    assert blend is not None
    before, router, _ = blend.coefficients[0].T
    others = [layer for layer in range(1, SHAPE.layers) if layer != 3]
    assert before[3] > 0 and router[others].min() > 0.5
