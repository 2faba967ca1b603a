"""Groupings on recorded routing: the cache counts as the engine's, the search bounds, the report compares."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from engine.cache.policy_choice import make_policy
from engine.errors import InvalidSetting
from engine.lab.grouping.best_split import best_split
from engine.lab.grouping.pass_cache import PassCache
from engine.lab.grouping.pool import Pool
from engine.lab.grouping.replay import replay
from engine.lab.grouping.simulate_groups import GroupSettings, simulate_groups
from engine.lab.grouping.unseen import unseen_traces
from engine.lab.simulation.contenders import Contender
from engine.lab.simulation.simulate import Simulator
from engine.routing.traces.trace_store import TraceStore
from engine.routing.traces.traced_model import TracedModel
from engine.routing.training.split import part_of
from engine.scheduling.groupings import CACHE_AWARE, RANDOM, WAVES, make_grouping
from engine.scheduling.paths import RecentPaths, used_experts
from tests.lab.test_simulation import EXPERT_BYTES, EXPERTS, LAYERS, SHAPE, TOP_K, machine, make_trace

POOL, TOKENS = 6, 60


def talks() -> list:
    """Conversations that each prefer experts of their own."""
    made = []
    for seed in range(POOL):
        trace = make_trace(TOKENS, seed)
        trace.experts[:, :, 0] = seed % 3
        trace.experts[:, :, 1] = 3 + trace.experts[:, :, 1] % 3
        made.append(trace)
    return made


@pytest.mark.parametrize("name", ["lru", "lru-per-layer", "lfu", "adaptive"])
@pytest.mark.parametrize("slots", [3, 9, 16])
def test_passes_of_one_token_move_what_the_engines_cache_moves(name, slots):
    trace = make_trace(40)
    cache = PassCache(make_policy(name, LAYERS), LAYERS, EXPERTS, slots)
    for row in used_experts(trace.experts, EXPERTS) > 0:
        cache.read(row)
    ordered = np.sort(trace.experts, axis=-1)  # a pass visits experts in the order of their numbers
    trace.experts[:] = ordered
    run = Simulator(machine(0.001), slots, Contender(make_policy(name, LAYERS))).run([trace])
    assert cache.moved * EXPERT_BYTES == run.bytes_moved
    assert cache.distinct == run.counters["activations"]


def test_a_pass_wider_than_the_cache_goes_through_it():
    cache = PassCache(make_policy("lru-per-layer", LAYERS), LAYERS, EXPERTS, TOP_K)
    cache.read(np.ones((LAYERS, EXPERTS), bool))
    assert (cache.distinct, cache.moved) == (LAYERS * EXPERTS, LAYERS * EXPERTS)
    assert cache.absent().sum() == LAYERS * EXPERTS - TOP_K


def test_the_search_finds_the_best_split_of_few():
    random = np.random.default_rng(0)
    for seed in range(5):
        paths = random.random((6, 20)) < 0.25
        found = best_split(paths, 2, seed)
        assert sorted(np.concatenate(found).tolist()) == list(range(6)) and {len(group) for group in found} == {2}
        least = min(
            sum(int(paths[list(order[n : n + 2])].any(0).sum()) for n in (0, 2, 4)) for order in permutations(range(6))
        )
        assert sum(int(paths[group].any(0).sum()) for group in found) == least


def test_one_group_of_all_needs_no_search():
    assert [group.tolist() for group in best_split(np.ones((3, 4), bool), 5)] == [[0, 1, 2]]


def run(name: str, size: int, knows_truth: bool = True):
    pool = Pool(talks(), SHAPE, RecentPaths(SHAPE, POOL), 5, 50)
    cache = PassCache(make_policy("lru-per-layer", LAYERS), LAYERS, EXPERTS, 12)
    return replay(pool, cache, make_grouping(name, TOP_K), size, 8, 60, knows_truth)


def test_waves_visit_each_expert_once_and_nobody_waits():
    waves, random = run(WAVES, 2), run(RANDOM, 2)
    assert waves.tokens == 60 and waves.passes == 10 and waves.worst_wait == 0
    assert waves.distinct / waves.tokens < random.distinct / random.tokens
    assert random.passes == 30


def test_what_knows_the_paths_moves_less_than_chance():
    ours, random = run(CACHE_AWARE, 2), run(RANDOM, 2)
    assert ours.moved / ours.tokens < 0.8 * random.moved / random.tokens
    assert 0 < ours.worst_wait <= 8


def test_the_report_compares_with_random_groups():
    settings = GroupSettings((4, 6, 99), (2, 4), (0.5,), ("lru-per-layer",), tokens=3, start=2)
    report = simulate_groups(talks(), SHAPE, EXPERT_BYTES, None, settings, lambda *_: None)
    assert set(report["forecasts"]) == {"recent", "previous"}
    assert all(0.5 < found["recall"] < 1 for found in report["forecasts"].values())
    runs = report["runs"]
    assert {(one["pool"], one["group_size"]) for one in runs} == {(4, 2), (6, 2), (6, 4)}
    assert {one["grouping"] for one in runs} == {"random", "off", "paper", "cache-aware", "by-search", "waves"}
    for one in runs:
        assert one["distinct_per_token"] > 0 and one["tokens"] >= 3 * one["pool"] - one["pool"]
        assert (one["recall"] is not None) == (one["paths"] == "predicted")
    by_name = {one["grouping"]: one for one in runs if (one["pool"], one["group_size"]) == (6, 2)}
    ratio = report["ratios"]["6_2_50%_lru-per-layer_waves_none"]
    assert ratio == pytest.approx(by_name["waves"]["bytes_per_token"] / by_name["random"]["bytes_per_token"])


def test_too_little_is_told():
    with pytest.raises(InvalidSetting, match="too few"):
        simulate_groups(talks(), SHAPE, 1, None, GroupSettings(pools=(8,)), lambda *_: None)
    with pytest.raises(InvalidSetting, match="are needed"):
        Pool([make_trace(4)], SHAPE, RecentPaths(SHAPE, 1), 2, 9)


def test_only_conversations_that_trained_nothing_are_taken(tmp_path):
    model = TracedModel("tiny", "f00d", SHAPE)
    file, other = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    with TraceStore(file, model) as store:
        for number in range(40):
            store.append(0, replace(make_trace(4 + number % 2, number), conversation=str(number)))
    found_model, found = unseen_traces([file], 99, 5)
    assert found_model == model
    assert {trace.conversation for trace in found} == {
        str(number) for number in range(1, 40, 2) if part_of(str(number)) == "test"
    }
    assert len(unseen_traces([file], 3, 5, seen_too=True)[1]) == 3
    with TraceStore(other, replace(model, fingerprint="beef")) as store:
        store.append(0, make_trace(4))
    with pytest.raises(InvalidSetting, match="different models"):
        unseen_traces([file, other], 9, 1)
