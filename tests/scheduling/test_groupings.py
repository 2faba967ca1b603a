"""What each grouping prefers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from engine.errors import InvalidSetting
from engine.scheduling.cost import distinct_experts, expected_new, most_likely
from engine.scheduling.fairness import FairPick
from engine.scheduling.groupings import (
    CACHE_AWARE,
    OFF,
    PAPER,
    RANDOM,
    WAVES,
    Waiting,
    make_grouping,
)
from engine.scheduling.similar import hamming_similarity, similar_groups

LAYERS, EXPERTS, TOP_K = 3, 8, 2


def topics(tokens: int, kinds: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Paths of `kinds` topics that share no expert, and the topic of each token."""
    random = np.random.default_rng(seed)
    topic = random.permutation(np.arange(tokens) % kinds)
    paths = np.zeros((tokens, LAYERS, EXPERTS), np.float32)
    for token, kind in enumerate(topic):
        paths[token, :, 2 * kind : 2 * kind + 2] = 0.9
    return paths, topic


def waiting(paths: np.ndarray, absent: np.ndarray | None = None) -> Waiting:
    places = np.arange(len(paths))
    return Waiting(places, places, paths, np.ones(paths.shape[1:], np.float32) if absent is None else absent)


def patient(tokens: int, size: int) -> FairPick:
    return FairPick(np.full(tokens, 99), size)


def test_the_papers_similarity_is_one_minus_hamming():
    paths = np.random.default_rng(1).random((5, 24)) < 0.3
    expected = [[1 - (one != other).mean() for other in paths] for one in paths]
    np.testing.assert_allclose(hamming_similarity(paths), expected, atol=1e-6)


@pytest.mark.parametrize(("tokens", "size"), [(12, 3), (10, 4), (7, 7), (5, 9), (1, 1), (9, 2)])
def test_similar_groups_split_all_tokens_evenly(tokens, size):
    paths = np.random.default_rng(2).random((tokens, 24)) < 0.3
    groups = similar_groups(paths, size, np.random.default_rng(0))
    assert sorted(np.concatenate(groups).tolist()) == list(range(tokens))
    lengths = [len(group) for group in groups]
    assert len(groups) == -(-tokens // size) and max(lengths) <= size and max(lengths) - min(lengths) <= 1


def test_similar_groups_find_the_topics_better_than_chance():
    paths, _ = topics(16, 4)
    used = most_likely(paths, TOP_K).reshape(16, -1)
    costs = []
    for seed in range(20):
        groups = similar_groups(used, 4, np.random.default_rng(seed))
        costs.append(sum(distinct_experts(used[group]) for group in groups))
    mixed = sum(distinct_experts(used[np.arange(16) % 4 == group]) for group in range(4))
    assert np.median(costs) < 0.6 * mixed


def test_the_cheapest_group_needs_what_is_there():
    paths, topic = topics(12, 4)
    absent = np.ones((LAYERS, EXPERTS), np.float32)
    absent[:, 4:6] = 0  # what topic 2 uses is there
    taken = make_grouping(CACHE_AWARE, TOP_K).group(waiting(paths, absent), patient(12, 3))
    assert (topic[taken] == 2).all()


def test_the_cheapest_group_is_one_topic_where_nothing_is_there():
    paths, topic = topics(12, 4)
    taken = make_grouping(CACHE_AWARE, TOP_K).group(waiting(paths), patient(12, 3))
    assert len(set(topic[taken].tolist())) == 1


def test_the_cheapest_group_is_near_the_best_of_all():
    random = np.random.default_rng(3)
    for _ in range(10):
        paths = random.random((8, LAYERS, EXPERTS)).astype(np.float32) ** 4
        absent = (random.random((LAYERS, EXPERTS)) < 0.7).astype(np.float32)
        flat, gone = paths.reshape(8, -1), absent.reshape(-1)
        taken = make_grouping(CACHE_AWARE, TOP_K).group(waiting(paths, absent), patient(8, 4))
        best = min(expected_new(flat[list(group)], gone) for group in combinations(range(8), 4))
        assert expected_new(flat[taken], gone) <= 1.1 * best


def test_with_everything_there_the_longest_waiting_go():
    paths, _ = topics(6, 3)
    ready = Waiting(np.arange(6), np.array([5, 3, 0, 1, 2, 4]), paths, np.zeros((LAYERS, EXPERTS), np.float32))
    assert make_grouping(CACHE_AWARE, TOP_K).group(ready, patient(6, 3)) == [5, 3, 0]
    assert make_grouping(OFF, TOP_K).group(ready, patient(6, 3)) == [5, 3, 0]


@pytest.mark.parametrize("name", [PAPER, RANDOM])
def test_a_round_reads_every_token_once(name):
    paths, _ = topics(10, 4)
    grouping, seen = make_grouping(name, TOP_K), []
    for _ in range(3):
        seen += grouping.group(waiting(paths), patient(10, 4))
    assert sorted(seen) == list(range(10))


@pytest.mark.parametrize("name", [PAPER, RANDOM])
def test_in_a_round_who_left_is_left_out_and_who_must_go_does(name):
    paths, _ = topics(8, 4)
    grouping = make_grouping(name, TOP_K)
    first = grouping.group(waiting(paths), patient(8, 4))
    left = [place for place in range(8) if place not in first][0]
    here = np.array([chat for chat in range(8) if chat != left])
    slack = np.where(here == first[0], 0, 99)
    ready = Waiting(here, np.arange(7), paths[here], np.ones((LAYERS, EXPERTS), np.float32))
    second = here[grouping.group(ready, FairPick(slack, 4))].tolist()
    assert first[0] in second and left not in second


def test_waves_take_all():
    grouping = make_grouping(WAVES, TOP_K)
    assert grouping.takes_all and not grouping.needs_paths
    assert sorted(grouping.group(Waiting(np.arange(5), np.arange(5)), patient(5, 5))) == [0, 1, 2, 3, 4]


def test_most_likely_takes_no_expert_of_probability_zero():
    paths = np.array([[[0.0, 0.7, 0.0, 0.2], [0.1, 0.5, 0.9, 0.2]]], np.float32)
    assert most_likely(paths, 2).astype(int).tolist() == [[[0, 1, 0, 1], [0, 1, 1, 0]]]
    assert most_likely(paths, 4).sum() == 6


def test_an_unknown_scheduler_is_told():
    with pytest.raises(InvalidSetting, match="fastest"):
        make_grouping("fastest", TOP_K)
