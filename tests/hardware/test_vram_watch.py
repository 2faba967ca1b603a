"""What the watcher notices in invented readings, and in those of the stub driver through the real pynvml."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DriverFailed
from engine.hardware.vram_reading import VramReading
from engine.hardware.vram_watch import PERIOD_SECONDS, SETTLE_SECONDS, Change, VramWatch
from tests.hardware import watched_card
from tests.hardware.stub_driver import CARD, GIB, StubDriver

CALM = VramReading(total_bytes=8 * GIB, free_bytes=4 * GIB, own_bytes=3 * GIB, allocated_bytes=3 * GIB)
WINDOWS = replace(CALM, own_bytes=None, can_spill=True)


class Card:
    """A card whose reading a test sets, looked at once a second."""

    def __init__(self, reading: VramReading) -> None:
        self.reading: VramReading | DriverFailed = reading
        self.seconds = 0.0
        self.reads = 0
        self._watch = VramWatch(self._read, clock=lambda: self.seconds)

    def _read(self) -> VramReading:
        self.reads += 1
        if isinstance(self.reading, DriverFailed):
            raise self.reading
        return self.reading

    def look(self, reading: VramReading | DriverFailed | None = None, speed: float | None = None) -> list[Change]:
        self.reading = reading or self.reading
        self.seen = self._watch.look(speed)
        self.seconds += PERIOD_SECONDS
        return [observation.change for observation in self.seen]

    def looks(self, seconds: float, speed: float | None = None) -> list[Change]:
        return [change for _ in range(round(seconds / PERIOD_SECONDS)) for change in self.look(speed=speed)]


def others(reading: VramReading, more_bytes: int) -> VramReading:
    return replace(reading, free_bytes=reading.free_bytes - more_bytes)


def test_what_others_take_is_noticed_at_the_next_look_and_once():
    card = Card(CALM)
    assert card.look() == []
    assert card.look(others(CALM, GIB)) == [Change.OTHERS_TOOK]
    assert card.seen[0].nbytes == GIB
    assert card.seen[0].reading.within_reach_bytes == 6 * GIB
    assert "took 1.1 GB" in card.seen[0].sentence and "3.2 GB are free" in card.seen[0].sentence
    assert card.looks(10) == []


def test_slow_growth_adds_up():
    card = Card(CALM)
    card.look()
    changes = [change for step in range(1, 11) for change in card.look(others(CALM, step * GIB // 20))]
    assert changes and set(changes) == {Change.OTHERS_TOOK}


def test_what_we_take_ourselves_is_no_news():
    card = Card(CALM)
    card.look()
    ours = replace(CALM, free_bytes=2 * GIB, own_bytes=5 * GIB, allocated_bytes=5 * GIB)
    assert card.look(ours) == []
    untold = Card(WINDOWS)
    untold.look()
    assert untold.look(replace(WINDOWS, free_bytes=2 * GIB, allocated_bytes=5 * GIB)) == []


def test_what_others_give_back_is_believed_once_it_has_lasted():
    card = Card(others(CALM, 2 * GIB))
    card.look()
    card.reading = CALM
    assert card.looks(SETTLE_SECONDS) == []
    assert card.look() == [Change.OTHERS_GAVE_BACK]
    assert card.seen[0].nbytes == 2 * GIB


def test_memory_that_comes_and_goes_is_not_given_back():
    card = Card(others(CALM, 2 * GIB))
    card.look()
    for _ in range(10):
        assert card.look(CALM) == []
        assert card.look(others(CALM, 2 * GIB)) == []


def test_only_what_was_free_all_the_time_is_given_back():
    card = Card(others(CALM, 2 * GIB))
    card.look()
    card.look(others(CALM, GIB))
    card.reading = CALM
    assert card.looks(SETTLE_SECONDS) == [Change.OTHERS_GAVE_BACK]
    assert card.seen[0].nbytes == GIB


def test_a_desktops_small_changes_are_no_news():
    card = Card(CALM)
    card.look()
    for more in (100 << 20, -(100 << 20), 50 << 20, 0):
        assert card.look(others(CALM, more)) == []


def test_it_reads_once_a_period_however_often_it_is_asked():
    card = Card(CALM)
    for _ in range(100):
        card._watch.look()
    assert card.reads == 1


def test_a_silent_driver_is_said_once_and_so_is_its_return():
    card = Card(CALM)
    card.look()
    assert card.look(DriverFailed("The card is gone.", "Restart.")) == [Change.DRIVER_SILENT]
    assert card.seen[0].sentence == "The card is gone. Restart."
    assert card.looks(5) == []
    assert card.look(CALM) == [Change.DRIVER_BACK]
    assert card.look() == []


SPILLING = [
    replace(WINDOWS, allocated_bytes=9 * GIB, free_bytes=GIB),  # more than the card has
    replace(WINDOWS, allocated_bytes=6 * GIB, free_bytes=4 * GIB),  # more than anybody uses of it
    replace(WINDOWS, allocated_bytes=3 * GIB, free_bytes=0),  # nothing told, but full
]


@pytest.mark.parametrize("spilled", SPILLING)
def test_memory_moved_to_ram_with_a_collapse_of_speed_is_a_spill(spilled):
    card = Card(WINDOWS)
    card.looks(10, speed=20.0)
    assert Change.SPILLED in card.look(spilled, speed=4.0)
    (spill,) = [seen for seen in card.seen if seen.change is Change.SPILLED]
    assert "5.0 times slower" in spill.sentence
    assert spill.nbytes == max(0, spilled.allocated_bytes - min(spilled.used_bytes, spilled.total_bytes))
    assert Change.SPILLED not in card.looks(60, speed=4.0)  # said once, and never taken for the usual speed
    card.reading = WINDOWS
    assert Change.SPILL_OVER in card.looks(2, speed=19.0)


@pytest.mark.parametrize("spilled", SPILLING)
def test_without_a_collapse_nothing_is_called_a_spill(spilled):
    card = Card(WINDOWS)
    card.looks(10, speed=20.0)
    card.reading = spilled
    assert Change.SPILLED not in card.looks(10, speed=18.0)
    assert Change.SPILLED not in card.looks(10)


def test_a_collapse_with_room_on_the_card_is_not_a_spill():
    card = Card(WINDOWS)
    card.looks(10, speed=20.0)
    assert card.looks(10, speed=2.0) == []


def test_what_lies_in_ram_is_not_taken_for_memory_given_back():
    card = Card(WINDOWS)
    card.look()
    card.reading = SPILLING[0]
    assert card.looks(3 * SETTLE_SECONDS) == []


def test_linux_refuses_memory_instead_of_moving_it():
    card = Card(CALM)
    card.looks(10, speed=20.0)
    full = replace(CALM, free_bytes=0, allocated_bytes=9 * GIB)
    assert Change.SPILLED not in card.look(full, speed=1.0)


@given(st.lists(st.integers(0, 8 * GIB), min_size=1, max_size=40))
def test_what_was_reported_never_strays_far_from_what_others_use(uses):
    """Whatever others do: more than reported is news at once, and the reports add up to what they hold."""
    empty = VramReading(8 * GIB, 8 * GIB, 0, 0)
    card = Card(others(empty, uses[0]))
    known = uses[0]
    for used in uses:
        for change in card.look(others(empty, used)):
            known += card.seen[0].nbytes if change is Change.OTHERS_TOOK else -card.seen[0].nbytes
        assert used - known < 128 << 20


def look_at(driver: StubDriver, seconds: float) -> list[tuple[Change, int]]:
    return driver.call(watched_card.look, seconds)


def test_another_program_grows_on_the_stub(driver):
    held = {"free": 7 * GIB, "process.0": f"own {GIB} compute"}
    driver.tell(CARD | held)
    driver.call(watched_card.start, CARD["uuid"], GIB)
    assert look_at(driver, 0) == []
    driver.tell(CARD | held | {"free": 4 * GIB, "process.1": f"77 {3 * GIB} graphics"})
    assert look_at(driver, 1) == [(Change.OTHERS_TOOK, 3 * GIB)]
    driver.tell(CARD | held)
    assert look_at(driver, 2) == []
    assert look_at(driver, 2 + SETTLE_SECONDS) == [(Change.OTHERS_GAVE_BACK, 3 * GIB)]


def test_the_driver_fails_in_between_and_recovers_on_the_stub(driver):
    driver.tell(CARD)
    driver.call(watched_card.start, CARD["uuid"], 0)
    look_at(driver, 0)
    for second, failing in enumerate(("nvmlDeviceGetMemoryInfo", "nvmlInit", "nvmlDeviceGetHandleByUUID"), start=1):
        driver.tell(CARD, **{f"error.{failing}": 15})
        assert look_at(driver, second) == ([(Change.DRIVER_SILENT, 0)] if second == 1 else [])
    driver.tell(CARD)
    assert look_at(driver, 5) == [(Change.DRIVER_BACK, 0)]


@pytest.mark.parametrize(
    ("listed", "allocated", "own"),
    [
        ("own 500 compute", 300, 500),
        ("own unknown compute", 300, None),  # Windows
        ("77 900 compute", 300, None),  # in a container we are listed by a number that is not ours
        ("77 900 compute", 0, 0),
    ],
)
def test_our_own_use_as_the_stub_tells_it(driver, listed, allocated, own):
    driver.tell(CARD | {"process.0": listed})
    reading = driver.call(watched_card.read_once, CARD["uuid"], allocated)
    assert (reading.own_bytes, reading.allocated_bytes) == (own, allocated)
    assert (reading.total_bytes, reading.free_bytes) == (8 * GIB, 6 * GIB)


def test_a_part_of_a_split_card_is_read_alone(driver):
    part = {"part.0.uuid": "MIG-0000", "part.0.total": 2 * GIB, "part.0.free": GIB}
    driver.tell(CARD | {"mig": 1} | part)
    assert driver.call(watched_card.read_once, "MIG-0000", 0).total_bytes == 2 * GIB
