"""Predictors that need no training, on conversations whose routing is known."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from engine.lab.routing_statistics import adjacent_overlap, token_table_recall
from engine.routing.predictors.baselines import NoPrediction, Oracle, PreviousToken
from engine.routing.predictors.token_table import PRIOR_TOKENS, fit_token_table
from engine.routing.scoring.evaluation import evaluate
from engine.routing.scoring.replay import replay
from tests.routing.synthetic import SHAPE, conversations


def test_nothing_finds_nothing():
    assert evaluate(NoPrediction(SHAPE), conversations(2)).rows[0].recall(2) == 0


def test_oracle_finds_everything_at_every_distance_that_exists():
    traces = conversations(3, 20)
    found = evaluate(Oracle(SHAPE, traces, horizon=3), traces)
    assert [row.recall(2) for row in found.rows] == [1, 1, 1]
    assert [row.tokens for row in found.rows] == [45, 42, 39]
    assert found.rows[0].calibration_error() == 0


def test_previous_token_recalls_what_adjacent_tokens_share():
    traces = conversations(4)
    found = evaluate(PreviousToken(SHAPE), traces, prompts_too=True).rows[0]
    pairs = 1 - 1 / len(traces[0])  # the first token of a conversation has none before it
    assert found.recall(2) == pytest.approx(adjacent_overlap([trace.experts for trace in traces]) * pairs)


def test_previous_token_reads_prompts_and_forgets_conversations():
    (trace,) = conversations(1)
    predictor = PreviousToken(SHAPE, horizon=2)
    first = next(replay(predictor, trace))
    before = trace.multi_hot(SHAPE.experts)[first.position - 1]
    assert first.position == 12 and np.array_equal(first.probabilities, [before, before])
    predictor.begin()
    assert not predictor.predict(0).any()


def test_table_recalls_what_a_table_can():
    known, asked = conversations(40), conversations(6, seed=9)
    found = evaluate(fit_token_table(SHAPE, known), asked, prompts_too=True).rows[0]
    pairs = [[(t.token_ids.tolist(), t.experts) for t in traces] for traces in (known, asked)]
    assert found.recall(2) == pytest.approx(token_table_recall(*pairs, SHAPE.experts), abs=0.01)
    by_layer = found.recall_by_layer(2)
    assert by_layer[0] == by_layer[3] == 1 and max(by_layer[1], by_layer[2]) < 0.9
    assert found.calibration_error() < 0.03


def test_table_counts_backs_off_and_knows_nothing_of_later_tokens():
    known = conversations(3)
    table = fit_token_table(SHAPE, known, horizon=2)
    used = np.concatenate([trace.multi_hot(SHAPE.experts) for trace in known])
    ids = np.concatenate([trace.token_ids for trace in known])
    marginal = used.mean(0)
    token, times = Counter(ids.tolist()).most_common(1)[0]
    expected = (used[ids == token].sum(0) + PRIOR_TOKENS * marginal) / (times + PRIOR_TOKENS)
    assert table.predict(token)[0] == pytest.approx(expected, abs=1e-3)
    assert table.predict(token)[1] == pytest.approx(marginal)
    unseen = fit_token_table(SHAPE, [known[0].rows(0, 1)])
    missing = next(t for t in range(SHAPE.vocabulary) if t != known[0].token_ids[0])
    assert unseen.predict(missing)[0] == pytest.approx(known[0].multi_hot(SHAPE.experts)[0])
