"""Metrics on examples counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from engine.routing.logistic import fit_logistic, logit, sigmoid
from engine.routing.scoring.scores import BINS, Scores


def test_recall_and_precision_by_hand():
    scores = Scores(layers=2, experts=4, ks=(2, 3))
    scores.add(np.array([[0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]]), np.array([[1, 0, 1, 0], [0, 0, 1, 1]]))
    scores.add(np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]), np.array([[1, 1, 0, 0], [0, 1, 1, 0]]))
    # found among two: 1 + 2, then 0 + 1; among three: 2 + 2, then 1 + 2
    assert scores.recall(2) == 4 / 8 and scores.precision(2) == 4 / 8
    assert scores.recall(3) == 7 / 8 and scores.precision(3) == 7 / 12
    assert scores.recall_by_layer(2) == [1 / 4, 3 / 4]


def test_impossible_experts_are_never_named():
    scores = Scores(1, 4, (2,))
    scores.add(np.array([[0.0, 0.0, 0.0, 0.7]]), np.array([[1, 0, 0, 1]]))
    scores.add(np.zeros((1, 4)), np.array([[1, 1, 0, 0]]))
    assert scores.recall(2) == 1 / 4 and scores.precision(2) == 1


def test_tokens_are_not_ored_together():
    scores = Scores(1, 2, (1,))
    for said, used in (([1, 0], [0, 1]), ([0, 1], [1, 0])):
        scores.add(np.array([said], float), np.array([used]))
    assert scores.recall(1) == 0


def test_calibration_by_hand():
    scores = Scores(1, 4, (1,))
    scores.add(np.array([[0.75, 0.75, 0.75, 0.75]]), np.array([[1, 1, 1, 0]]))
    assert scores.calibration_error() == pytest.approx(0)
    scores.add(np.array([[0.01, 0.01, 1.0, 1.0]]), np.array([[1, 0, 0, 0]]))
    assert scores.calibration_error() == pytest.approx((2 * 0.49 + 2 * 1) / 8)
    assert [row["count"] for row in scores.reliability()] == [2, 4, 2]
    assert BINS == 15


def test_logistic_regression_finds_the_odds_that_made_the_data():
    chance = np.random.default_rng(0)
    features = chance.normal(size=(40000, 2)) * 2
    targets = chance.random(40000) < sigmoid(features @ np.array([1.5, -0.7]) + 0.3)
    assert fit_logistic(features, targets) == pytest.approx([1.5, -0.7, 0.3], abs=0.06)
    held = fit_logistic(features[:20], targets[:20], centre=np.array([1, 0, 0]), strength=1e6)
    assert held == pytest.approx([1, 0, 0], abs=1e-3)


def test_logistic_regression_survives_separable_data_and_extreme_odds():
    x = logit(np.array([0.0, 0.0, 1.0, 1.0]))[:, None]
    weights = fit_logistic(x, np.array([0, 0, 1, 1]))
    assert np.isfinite(weights).all() and weights[0] > 0
