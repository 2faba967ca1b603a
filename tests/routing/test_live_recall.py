"""Recall while decoding, on hand-made tokens."""

from __future__ import annotations

import numpy as np
import pytest

from engine.routing.live_recall import LiveRecall


def test_before_the_first_token_there_is_none():
    assert LiveRecall(2).by_layer() is None


def test_it_is_the_share_of_used_experts_among_as_many_predicted():
    recall = LiveRecall(3)
    predicted = np.array([[0.9, 0.8, 0.1, 0.0], [0.9, 0.8, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]])
    recall.count(predicted, np.array([[1, 0], [0, 2], [0, 1]]))
    assert recall.by_layer() == pytest.approx([1.0, 0.5, 0.0])


def test_nobody_is_neither_used_nor_found():
    recall = LiveRecall(1)
    recall.count(np.array([[0.9, 0.8, 0.1]]), np.array([[0, -1]]))
    assert recall.by_layer() == pytest.approx([1.0])


def test_old_tokens_count_less():
    recall = LiveRecall(1)
    said = np.array([[1.0, 0.0]])
    for _ in range(64):
        recall.count(said, np.array([[1]]))
    for _ in range(64):
        recall.count(said, np.array([[0]]))
    assert recall.by_layer() == pytest.approx([2 / 3], abs=0.01)
