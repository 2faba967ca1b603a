"""Other programs take a card's memory and give it back while a chat goes on."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import vram_guard
from engine.engine import Engine
from engine.errors import DriverFailed
from engine.hardware import vram_watch
from engine.hardware.memory_plan import GIB, MIB, Footprint
from engine.hardware.vram_reading import VramReading
from engine.placement import Placement
from engine.vram_guard import slots_within
from tests.cache.fake_cuda import FakeCard
from tests.engine.oracle import assert_same_greedy
from tests.engine.stepwise import stepwise
from tests.engine.test_card import NEW_TOKENS, reference
from tests.tiny_models import tiny_checkpoint

TOTAL = 16 * GIB
FORTY_SLOTS = Footprint(GIB, GIB, GIB, 100 * MIB, 40, 8, 5 * GIB)


class FakeReader:
    """A driver that tells what the test says."""

    def __init__(self, card: FakeCard) -> None:
        self.free_bytes, self.card = TOTAL // 2, card
        self.broken = self.closed = False
        self.readings = 0

    def __call__(self) -> VramReading:
        self.readings += 1
        if self.broken:
            raise DriverFailed("The driver is gone.", "Restart.")
        return VramReading(TOTAL, self.free_bytes, self.card.reserved_bytes(), self.card.reserved_bytes())

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def reader(monkeypatch) -> FakeReader:
    card = FakeCard(lazy=False)
    fake = FakeReader(card)
    placement = Placement(card.device, "A card that the tests made up.", card, fake)
    monkeypatch.setattr("engine.engine.place", lambda device, link: placement)
    monkeypatch.setattr(vram_guard.VramGuard.__init__, "__defaults__", (0.005,))
    monkeypatch.setattr(vram_watch, "SETTLE_SECONDS", 0.0)
    return fake


def eventually(happened) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def seen_once(reader: FakeReader) -> None:
    readings = reader.readings
    eventually(lambda: reader.readings >= readings + 2)


def test_the_cache_follows_the_card_in_the_middle_of_an_answer(reader):
    stock, [prompt, _], [answer, _] = reference("mixtral")
    with Engine.load(tiny_checkpoint("mixtral"), budget="100%") as engine:
        seen_once(reader)
        answering = stepwise(engine, prompt, NEW_TOKENS)
        ids = [next(answering).token_id]
        needs, before = engine._footprint, reader.free_bytes
        reader.free_bytes = needs.fixed_bytes + 256 * MIB + 9 * needs.slot_bytes - reader.card.reserved_bytes()
        eventually(lambda: engine.plan.slots == 9)
        assert reader.card.allocated_bytes == 9 * needs.slot_bytes == engine.plan.near_bytes_experts
        assert "Other programs took" in engine.plan.warnings[-1]
        assert any("Other programs took" in note for note in engine.snapshot().notes)
        ids += [next(answering).token_id for _ in range(4)]
        reader.free_bytes = before
        eventually(lambda: engine.plan.slots == 24)
        assert "gave back" in engine.plan.warnings[-1]
        ids += [event.token_id for event in answering]
        assert_same_greedy(ids, answer, prompt, stock)
        reader.broken = True
        eventually(lambda: any("driver is gone" in note for note in engine.snapshot().notes))
        assert engine.plan.slots == 24
    assert reader.closed
    readings = reader.readings
    time.sleep(0.05)
    assert reader.readings == readings, "the thread outlived the engine"


def test_a_card_that_others_fill_leaves_the_fewest_slots(reader):
    with Engine.load(tiny_checkpoint("mixtral"), budget="50%") as engine:
        seen_once(reader)
        reader.free_bytes = 0
        eventually(lambda: engine.plan.slots == engine.plan.minimum_slots)
        assert engine.resize("25%").slots == 6, "who asks by hand gets it"


def full_card(free_bytes: int, ours_bytes: int) -> VramReading:
    return VramReading(TOTAL, free_bytes, ours_bytes, ours_bytes)


budgets = st.sampled_from(["auto", "25%", "100%", "6GiB", "4 GiB"])


@given(st.integers(0, TOTAL), st.integers(0, TOTAL), budgets, st.integers(0, 4 * GIB))
def test_slots_stay_within_card_and_budget(free, ours, budget, outside):
    free = min(free, TOTAL - ours)
    slots = slots_within(FORTY_SLOTS, budget, full_card(free, ours), outside)
    plenty = slots_within(FORTY_SLOTS, budget, full_card(TOTAL, 0))
    assert FORTY_SLOTS.minimum_slots <= slots <= plenty
    if slots > FORTY_SLOTS.minimum_slots:
        assert FORTY_SLOTS.fixed_bytes + slots * FORTY_SLOTS.slot_bytes <= free + ours - outside
    assert slots <= slots_within(FORTY_SLOTS, budget, full_card(free, ours))


def test_a_budget_by_hand_is_kept_while_there_is_room_for_it():
    assert slots_within(FORTY_SLOTS, "25%", full_card(8 * GIB, 4 * GIB)) == 10
    assert slots_within(FORTY_SLOTS, "25%", full_card(0, 4 * GIB)) == 8  # the fewest: 3 GiB are other things
    assert slots_within(FORTY_SLOTS, "auto", full_card(8 * GIB, 8 * GIB)) == 40
