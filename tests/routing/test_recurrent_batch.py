"""Several chats beside each other are predicted as each alone."""

from __future__ import annotations

import numpy as np
import pytest

from engine.routing.predictors.recurrent import RecurrentPredictor, export
from engine.routing.predictors.recurrent_batch import RecurrentBatch, can_batch
from tests.routing.synthetic import WIDTH, conversations
from tests.routing.test_recurrent import CALIBRATION, random_network


@pytest.mark.parametrize("hidden_width", [0, WIDTH])
def test_each_chat_is_predicted_as_alone(hidden_width):
    stored = export(random_network(hidden_width), CALIBRATION, "m")
    assert can_batch(stored)
    traces = conversations(3, 12)
    batch = RecurrentBatch(stored, 5)
    place_of = {0: 4, 1: 0, 2: 2}
    turns = [[0], [0, 1], [1, 2, 0], [2], [0, 2], [1], [0, 1, 2], [2, 1]]
    alone = [RecurrentPredictor(stored) for _ in traces]
    position = [0, 0, 0]
    for chats in turns:
        rows = [traces[chat].rows(position[chat], position[chat] + 1) for chat in chats]
        places, tokens = [place_of[chat] for chat in chats], [int(row.token_ids[0]) for row in rows]
        expected = [alone[chat].predict(token)[0].copy() for chat, token in zip(chats, tokens, strict=True)]
        np.testing.assert_allclose(batch.predict(places, tokens), expected, atol=1e-5)
        hidden = np.stack([row.hidden[0] for row in rows]) if hidden_width else None
        batch.observed(
            places, *(np.stack([getattr(row, n)[0] for row in rows]) for n in ("experts", "weights")), hidden
        )
        for row, chat in zip(rows, chats, strict=True):
            alone[chat].observed(row.experts[0], row.weights[0], row.hidden[0] if hidden_width else None)
            position[chat] += 1


def test_a_new_chat_knows_nothing_of_the_one_before():
    stored = export(random_network(), CALIBRATION, "m")
    (trace,) = conversations(1, 6)
    batch = RecurrentBatch(stored, 2)
    first = batch.predict([1], [int(trace.token_ids[0])])
    batch.observed([1], trace.experts[:1], trace.weights[:1], trace.hidden[:1])
    assert not np.allclose(batch.predict([1], [int(trace.token_ids[0])]), first)
    batch.begin(1)
    np.testing.assert_allclose(batch.predict([1], [int(trace.token_ids[0])]), first)
