"""Statistics of routing, on routing whose figures are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.lab.routing_statistics import (
    adjacent_overlap,
    cache_hit_rates,
    entropy_per_layer,
    expert_counts,
    max_over_mean_load,
    token_table_recall,
)

EXPERTS, LAYERS = 8, 3


def constant(tokens: int, experts: tuple[int, int] = (2, 5)) -> np.ndarray:
    return np.tile(np.array(experts), (tokens, LAYERS, 1))


def random_routing(tokens: int, seed: int = 0) -> np.ndarray:
    chooser = np.random.default_rng(seed)
    order = np.argsort(chooser.random((tokens, LAYERS, EXPERTS)), axis=-1)
    return order[..., :2]


def test_counts_are_by_layer():
    routing = np.array([[[0, 1], [2, 3]], [[0, 2], [2, 7]]])
    counts = expert_counts([routing, routing[:1]], EXPERTS)
    assert counts.tolist() == [[3, 2, 1, 0, 0, 0, 0, 0], [0, 0, 3, 2, 0, 0, 0, 1]]
    assert max_over_mean_load(counts) == 3 / (6 / 8)


def test_entropy_is_one_where_all_are_busy_alike_and_falls_with_fewer():
    even = np.full((1, EXPERTS), 7)
    two = np.array([[5, 5, 0, 0, 0, 0, 0, 0]])
    assert entropy_per_layer(even) == pytest.approx([1.0])
    assert entropy_per_layer(two) == pytest.approx([math.log(2) / math.log(8)])


def test_overlap_is_within_a_conversation():
    alternating = np.stack([constant(1)[0], constant(1, (3, 5))[0]] * 4)
    assert adjacent_overlap([constant(9)]) == 1
    assert adjacent_overlap([alternating]) == 0.5
    assert adjacent_overlap([constant(3, (0, 1)), constant(3, (2, 3))]) == 1
    assert adjacent_overlap([random_routing(4000)]) == pytest.approx(2 / EXPERTS, abs=0.02)


def test_hit_rates_grow_with_the_cache_and_stay_below_the_bound():
    rates = cache_hit_rates([random_routing(150, seed) for seed in range(3)], EXPERTS, (0.25, 0.5, 1.0))
    for name, by_share in rates.items():
        assert by_share["25%"] < by_share["50%"] < by_share["100%"], name
        assert all(rate <= rates["belady"][share] for share, rate in by_share.items())
    assert rates["lru"]["50%"] == pytest.approx(0.5, abs=0.06)
    everything = 1 - EXPERTS * LAYERS / (450 * LAYERS * 2)  # only first uses miss
    assert {by_share["100%"] for by_share in rates.values()} == {everything}


def test_a_table_by_token_knows_what_the_token_alone_decides():
    by_token = random_routing(20)
    known_ids = list(range(10)) * 3
    known = [(known_ids, by_token[known_ids])]
    assert token_table_recall(known, [([3, 7, 3], by_token[[3, 7, 3]])], EXPERTS) == 1.0
    unrelated = random_routing(3000, seed=5)
    chance = token_table_recall(known, [([0] * 3000, unrelated)], EXPERTS)
    assert chance == pytest.approx(2 / EXPERTS, abs=0.05)


def test_a_token_never_seen_gets_the_busiest_experts_of_the_layer():
    known = [([1, 2, 3], np.concatenate([constant(2), constant(1, (0, 1))]))]
    assert token_table_recall(known, [([9], constant(1))], EXPERTS) == 1.0
    assert token_table_recall(known, [([9], constant(1, (0, 1)))], EXPERTS) == 0.0
