"""The plan as arithmetic: never above what there is, never negative, monotone, and its parts add up."""

from __future__ import annotations

import dataclasses
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import BudgetTooSmall, InvalidSetting, NotEnoughMemory
from engine.hardware.memory_plan import (
    GIB,
    MIB,
    Footprint,
    MemoryPlan,
    make_plan,
    minimum_budget_bytes,
    parse_bytes,
)

sizes = st.integers(0, 40 * GIB)
footprints = st.builds(
    Footprint,
    dense_bytes=sizes,
    kv_bytes=st.integers(0, 8 * GIB),
    workspace_bytes=st.integers(0, GIB),
    slot_bytes=st.integers(4096, GIB),
    experts_total=st.integers(8, 20_000),
    minimum_slots=st.integers(1, 8),
    model_bytes_total=st.integers(1, 1 << 42),
)
QWEN3_30B = Footprint(  # bf16: 48 layers of 128 experts
    dense_bytes=3 * GIB,
    kv_bytes=400 * MIB,
    workspace_bytes=300 * MIB,
    slot_bytes=9 * MIB,
    experts_total=6144,
    minimum_slots=8,
    model_bytes_total=61 * 10**9,
)


def check(plan: MemoryPlan, needs: Footprint) -> None:
    parts = (plan.near_bytes_dense, plan.near_bytes_kv, plan.near_bytes_workspace, plan.near_bytes_experts)
    assert all(part >= 0 for part in parts) and sum(parts) == plan.near_bytes_total
    assert plan.near_bytes_experts == plan.slots * plan.slot_bytes
    assert needs.minimum_slots <= plan.slots <= needs.experts_total
    assert parts[:3] == (needs.dense_bytes, needs.kv_bytes, needs.workspace_bytes)
    assert plan.reasons and all(sentence.endswith(".") for sentence in plan.reasons + plan.warnings)


@given(footprints, sizes)
def test_auto_stays_below_what_is_free_and_leaves_a_margin(needs, free_bytes):
    try:
        plan = make_plan(needs, "auto", free_bytes)
    except NotEnoughMemory:
        assert minimum_budget_bytes(needs) + max(min(GIB, free_bytes // 4), free_bytes // 10) > free_bytes
        return
    check(plan, needs)
    assert plan.near_bytes_total + plan.margin_bytes <= free_bytes
    assert plan.margin_bytes >= free_bytes // 10
    room_for_one_more = free_bytes - plan.margin_bytes - plan.near_bytes_total >= plan.slot_bytes
    assert plan.slots == needs.experts_total or not room_for_one_more


@given(footprints, st.integers(0, 1 << 43), sizes)
def test_a_size_is_never_exceeded_and_never_undercut_by_a_slot(needs, budget_bytes, free_bytes):
    try:
        plan = make_plan(needs, budget_bytes, free_bytes)
    except BudgetTooSmall as error:
        assert budget_bytes < minimum_budget_bytes(needs) == error.minimum_bytes
        assert str(ceil(minimum_budget_bytes(needs) / MIB)) in error.remedy  # the number that would do
        return
    check(plan, needs)
    assert plan.near_bytes_total <= budget_bytes
    assert plan.slots == needs.experts_total or budget_bytes - plan.near_bytes_total < plan.slot_bytes
    assert bool(plan.warnings) == (plan.near_bytes_total > free_bytes)


@given(footprints, st.integers(0, 1 << 43), st.integers(0, 1 << 43))
def test_more_budget_never_gives_fewer_slots(needs, one, other):
    least = minimum_budget_bytes(needs)
    less, more = sorted((least + one, least + other))
    assert make_plan(needs, less, 0).slots <= make_plan(needs, more, 0).slots


@given(footprints, sizes, sizes)
def test_more_free_memory_never_gives_auto_fewer_slots(needs, one, other):
    less, more = sorted((one, other))
    try:
        smaller = make_plan(needs, "auto", less)
    except NotEnoughMemory:
        return
    assert smaller.slots <= make_plan(needs, "auto", more).slots


@given(footprints, st.floats(0, 300))
def test_a_share_is_of_the_experts_and_at_least_what_one_layer_needs(needs, percent):
    plan = make_plan(needs, f"{percent:.3f}%", 1 << 43)
    check(plan, needs)
    wanted = min(int(float(f"{percent:.3f}") * needs.experts_total / 100), needs.experts_total)
    assert plan.slots == max(wanted, needs.minimum_slots)
    assert bool(plan.warnings) == (wanted < needs.minimum_slots)


@given(footprints, st.integers(0, 4 * GIB))
def test_a_longer_context_takes_its_bytes_from_the_experts(needs, more_kv_bytes):
    budget = minimum_budget_bytes(needs) + 3 * GIB
    longer = dataclasses.replace(needs, kv_bytes=needs.kv_bytes + more_kv_bytes)
    before = make_plan(needs, budget, 0)
    try:
        after = make_plan(longer, budget, 0)
    except BudgetTooSmall:
        return
    assert after.slots <= before.slots and after.near_bytes_total <= budget


@pytest.mark.parametrize(("card_bytes", "at_least", "at_most"), [(8, 250, 420), (12, 650, 850), (24, 1800, 2200)])
def test_common_cards_hold_a_useful_part_of_a_large_model_without_a_number_typed(card_bytes, at_least, at_most):
    plan = make_plan(QWEN3_30B, "auto", card_bytes * GIB - 700 * MIB)
    assert at_least <= plan.slots <= at_most and not plan.warnings


@pytest.mark.parametrize("text", ["", "a lot", "6 GiBs", "-3GiB", "25 percent", "1e9"])
def test_what_is_no_budget_is_refused_with_examples(text):
    with pytest.raises(InvalidSetting, match="not a memory budget"):
        make_plan(QWEN3_30B, text, 24 * GIB)


def test_sizes_are_read_as_people_write_them():
    assert [parse_bytes(text) for text in ("6GiB", "500 MB", "1.5 gb", "4096")] == [
        6 * GIB,
        5 * 10**8,
        1_500_000_000,
        4096,
    ]
