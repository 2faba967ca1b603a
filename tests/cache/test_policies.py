"""Policies against the smallest correct versions of themselves."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache.adaptive import RESTING_STEPS, WATCHED_STEPS
from engine.cache.deferred import REMEMBERED_STEPS, DeferredEviction
from engine.cache.least_stale import LeastStale
from engine.cache.policies import LRU, Belady, DecayedLFU, EvictionPolicy, layer_lfu, layer_lru
from engine.cache.policy_choice import ADAPTIVE, PLAIN_POLICIES, check_policy, make_policy
from engine.cache.predicted_next_use import SwitchedEviction
from engine.cache.residency import Residency
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import InvalidSetting

LAYERS, EXPERTS = 3, 4
keys = st.builds(ExpertKey, st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1))


def misses(policy: EvictionPolicy, uses: list[ExpertKey], slots: int) -> list[ExpertKey]:
    """Replays one activation at a time through the real slot accounting."""
    residency = Residency(policy)
    residency.add_slots(list(range(slots)))
    missed = []
    for key in uses:
        policy.used(key)
        if residency.slot(key) is None:
            missed.append(key)
            assert residency.reserve(key) is not None
            residency.publish(key)
        policy.step_ended()
        residency.check()
    return missed


def naive_lru(uses: list[ExpertKey], slots: int) -> list[ExpertKey]:
    held: list[ExpertKey] = []
    missed = []
    for key in uses:
        if key in held:
            held.remove(key)
        else:
            missed.append(key)
            del held[: max(0, len(held) - slots + 1)]
        held.append(key)
    return missed


@given(st.lists(keys, max_size=60), st.integers(1, 8))
def test_lru_equals_the_naive_one(uses, slots):
    assert misses(LRU(), uses, slots) == naive_lru(uses, slots)


@given(st.lists(keys, max_size=60), st.integers(1, 4))
def test_layer_lru_equals_one_naive_lru_per_layer(uses, per_layer):
    expected = [naive_lru([key for key in uses if key.layer == layer], per_layer) for layer in range(LAYERS)]
    missed = misses(layer_lru(LAYERS), uses, per_layer * LAYERS)
    warm = [key for key in missed if len({k for k in uses if k.layer == key.layer}) <= per_layer]
    assert sorted(warm) == sorted(set(warm))  # a layer whose experts fit its share misses each of them once
    if all(len({key for key in uses if key.layer == layer}) >= per_layer for layer in range(LAYERS)):
        assert len(missed) <= sum(map(len, expected)) + per_layer * LAYERS


@given(st.lists(keys, min_size=1, max_size=60), st.integers(1, 4))
def test_in_one_layer_policies_per_layer_are_the_plain_ones(uses, slots):
    uses = [ExpertKey(0, key.expert) for key in uses]
    for inside, plain in ((layer_lru, LRU()), (layer_lfu, DecayedLFU())):
        policy = inside(1)
        policy.resized(slots)
        assert misses(policy, uses, slots) == misses(plain, uses, slots)


def test_a_ghost_keeps_a_layers_experts_while_it_computes():
    """A favourite and a passer-by in two slots: without pins, one would always make room for the other."""
    adaptive = make_policy(ADAPTIVE, 1)
    adaptive.resized(2)
    for step in range(40):
        for key in (ExpertKey(0, 0), ExpertKey(0, 1 + step % 3)):
            adaptive.used(key)
        adaptive.step_ended()
    assert all(ghost._hit == 0 and ghost.hits > 0.45 * 35 for ghost in adaptive._ghosts.values())


@given(st.lists(keys, max_size=60), st.integers(1, 8))
def test_belady_never_misses_more_than_the_others(uses, slots):
    bound = len(misses(Belady([key] for key in uses), uses, slots))
    for policy in (LRU(), layer_lru(LAYERS), layer_lfu(LAYERS), DecayedLFU(half_life_steps=4)):
        assert bound <= len(misses(policy, uses, slots))


def naive_lfu(uses: list[ExpertKey], slots: int, half_life: float) -> list[ExpertKey]:
    held: set[ExpertKey] = set()
    missed = []
    for now, key in enumerate(uses):
        scores = dict.fromkeys(held, 0.0)
        for then, used in enumerate(uses[:now]):
            if used in scores:
                scores[used] += 2.0 ** (-(now - then) / half_life)
        if key not in held:
            missed.append(key)
            if len(held) == slots:
                held.remove(min(held, key=lambda one, scores=scores: (scores[one], one)))
            held.add(key)
    return missed


@given(st.lists(keys, max_size=60), st.integers(1, 8))
def test_lfu_equals_the_naive_one(uses, slots):
    assert misses(DecayedLFU(half_life_steps=4), uses, slots) == naive_lfu(uses, slots, 4)


def test_lfu_stays_right_over_many_steps_and_uses():
    """Growing weights are scaled down and the heap is rebuilt: the order survives both."""
    favourite, rival = ExpertKey(0, 0), ExpertKey(0, 1)
    policy = DecayedLFU(half_life_steps=1)
    for key in (favourite, rival):
        policy.inserted(key)
    for step in range(200):
        policy.used(favourite)
        if step % 2:
            policy.used(rival)
        policy.step_ended()
        assert policy.victim(blocked=(), incoming=None) == rival
    assert len(policy._lowest) <= 8 * 2 + 3


def test_lfu_keeps_the_favourite_and_forgets_an_old_one():
    favourite, rival = ExpertKey(0, 0), ExpertKey(0, 1)
    passing = [ExpertKey(1, expert) for expert in range(EXPERTS)]
    policy = DecayedLFU(half_life_steps=8)
    assert misses(policy, [favourite] * 5 + passing + [favourite], slots=2).count(favourite) == 1
    policy.inserted(rival)
    policy.used(rival)
    assert policy.victim(blocked=passing, incoming=None) == rival
    for _ in range(100):
        policy.step_ended()
    policy.used(rival)
    assert policy.victim(blocked=passing, incoming=None) == favourite


def test_a_global_lru_hits_nothing_when_slots_are_fewer_than_a_token_needs():
    """The cyclic scan of decoding; equal shares per layer do hit (the reason for having both)."""
    token = [ExpertKey(layer, 0) for layer in range(LAYERS)]
    wandering = [ExpertKey(layer, 1 + step % 2) for step in range(8) for layer in range(LAYERS)]
    uses = [key for step in range(8) for key in token + wandering[step * LAYERS : (step + 1) * LAYERS]]
    assert len(misses(LRU(), uses, slots=LAYERS)) == len(uses)
    same = [key for _ in range(8) for key in token]
    assert len(misses(LRU(), same, slots=LAYERS - 1)) == len(same)
    assert len(misses(layer_lru(LAYERS), same, slots=LAYERS)) == LAYERS


def test_switched_eviction_changes_between_policies_that_both_know_everything():
    first_counts = [True]
    switched = SwitchedEviction(LRU(), DecayedLFU(), lambda: first_counts[0])
    residency = Residency(switched)
    residency.add_slots([0, 1])
    often, lately, new = (ExpertKey(0, expert) for expert in range(3))
    for key in (often, often, lately):
        switched.used(key)
        if residency.slot(key) is None:
            residency.reserve(key)
            residency.publish(key)
    assert switched.victim(residency.blocked, new) == often
    first_counts[0] = False
    assert switched.victim(residency.blocked, new) == lately


def test_an_unknown_policy_is_named_with_the_known_ones():
    with pytest.raises(InvalidSetting, match="lru-per-layer"):
        check_policy("random")


def test_least_stale_gives_up_what_the_pass_has_gone_by_and_keeps_what_lies_ahead():
    policy = LeastStale(layers=4)
    unused_behind, used_behind, ahead = ExpertKey(1, 5), ExpertKey(1, 0), ExpertKey(3, 0)
    for key in (ahead, used_behind, unused_behind):
        policy.inserted(key)
    policy.used(used_behind)
    policy.used(ExpertKey(2, 0))
    assert policy.victim((), None) == unused_behind
    assert policy.victim({unused_behind}, None) == used_behind
    assert policy.victim({unused_behind, used_behind}, None) == ahead
    policy.step_ended()
    policy.used(ExpertKey(2, 1))
    assert policy.victim({unused_behind}, None) == used_behind  # stale now, and nearer behind than what lies ahead
    policy.removed(unused_behind)
    assert policy.victim({used_behind, ahead}, None) is None


def favourites_and_a_scan(tokens: int) -> list[ExpertKey]:
    """Every other token uses its layers' favourites, every token many that were not used for long: LFU's day."""
    return [
        ExpertKey(layer, expert)
        for t in range(tokens)
        for layer in range(4)
        for expert in (*([0] if t % 2 else []), *(1 + (3 * t + i) % 15 for i in range(3)))
    ]


def changing_favourites(tokens: int) -> list[ExpertKey]:
    """Favourites that change every few tokens, all in the first layer: a global LRU's day."""
    return [ExpertKey(0, (t // 40 * 5 + use) % 16) for t in range(tokens) for use in range(5)]


@pytest.mark.parametrize("uses", [favourites_and_a_scan(150), changing_favourites(240)])
def test_adaptive_is_about_as_good_as_the_best(uses):
    hits = {name: len(uses) - len(misses(make_policy(name, 4), uses, 8)) for name in (*PLAIN_POLICIES, ADAPTIVE)}
    ours = hits.pop(ADAPTIVE)
    assert max(hits.values()) > 1.2 * min(hits.values())
    assert ours > 0.9 * max(hits.values())


def test_adaptive_rests_and_then_sees_that_another_policy_is_better():
    policy = make_policy(ADAPTIVE, 4)
    uses = [favourites_and_a_scan(WATCHED_STEPS // 8), changing_favourites((WATCHED_STEPS + RESTING_STEPS) // 4)]
    residency = Residency(policy)
    residency.add_slots(list(range(8)))
    chosen: list[list[str]] = [[], []]
    for part, seen in zip(uses, chosen, strict=True):
        for key in part:
            policy.used(key)
            if residency.slot(key) is None:
                residency.reserve(key)
                residency.publish(key)
            policy.step_ended()
            seen.append(policy.chosen)
    assert "lru" not in chosen[0]
    assert policy.chosen == "lru"
    resting = (chosen[0] + chosen[1])[WATCHED_STEPS : WATCHED_STEPS + RESTING_STEPS]
    assert len(chosen[0]) < WATCHED_STEPS + RESTING_STEPS and len(set(resting)) == 1


@pytest.mark.parametrize("name", (*PLAIN_POLICIES, ADAPTIVE))
@given(st.lists(keys, max_size=60), st.integers(1, 8))
def test_a_policy_that_is_told_later_decides_the_same(name, uses, slots):
    assert misses(DeferredEviction(make_policy(name, LAYERS)), uses, slots) == misses(
        make_policy(name, LAYERS), uses, slots
    )


def test_a_policy_that_is_asked_seldom_hears_of_the_last_steps_alone():
    told: list[ExpertKey] = []
    policy = LRU()
    policy.used = told.append
    deferred = DeferredEviction(policy)
    for step in range(3 * REMEMBERED_STEPS):
        deferred.inserted(ExpertKey(0, step))
        deferred.used(ExpertKey(0, step))
        deferred.step_ended()
        if step:
            deferred.removed(ExpertKey(0, step - 1))
    assert not told
    assert deferred.victim((), None) == ExpertKey(0, step)
    assert told == [ExpertKey(0, late) for late in range(2 * REMEMBERED_STEPS, 3 * REMEMBERED_STEPS)]


@given(st.lists(st.tuples(keys, st.integers(1, 9)), max_size=60))
def test_adaptive_stays_within_slots_that_change(steps):
    policy = make_policy(ADAPTIVE, LAYERS)
    residency, fresh = Residency(policy), itertools.count(1)
    residency.add_slots([0])
    for key, slots in steps:
        if slots > residency.slots:
            residency.add_slots([next(fresh) for _ in range(slots - residency.slots)])
        elif slots < residency.slots:
            residency.drop_slots(slots)
        policy.used(key)
        if residency.slot(key) is None:
            assert residency.reserve(key) is not None
            residency.publish(key)
        policy.step_ended()
        residency.check()
