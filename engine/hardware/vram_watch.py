"""Noticing that other programs take VRAM or give it back, that the system moved ours to RAM, that the driver is gone.

Plain logic on readings and a clock: whoever runs the engine asks `look()` between tokens and acts on the answer:

    reader = VramReader(device.uuid, lambda: torch.cuda.memory_reserved(device.index))    # closed with the engine
    watch = VramWatch(reader)
    for observation in watch.look(tokens_per_second): ...    # say its sentence; follow its reading's within_reach_bytes
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from statistics import median

from engine.errors import DriverFailed
from engine.hardware.memory_plan import MIB, format_bytes
from engine.hardware.vram_reading import VramReading

PERIOD_SECONDS = 1.0
SETTLE_SECONDS = 5.0  # what was given back must stay free this long: growing too early would only be undone
_NOTICE_BYTES = 128 * MIB  # desktops come and go by less than this
_NOTICE_SHARE = 64  # ... or by less than this part of the card
_FULL_SHARE = 50  # "full" leaves less than this part free
_COLLAPSE = 2.0  # a token took this many times as long as usual
_SPEEDS_KEPT = 32
_SPEEDS_NEEDED = 5


class Change(Enum):
    """What was noticed."""

    OTHERS_TOOK = "others took"
    OTHERS_GAVE_BACK = "others gave back"
    SPILLED = "spilled"
    SPILL_OVER = "spill over"
    DRIVER_SILENT = "driver silent"
    DRIVER_BACK = "driver back"


@dataclass(frozen=True)
class Observation:
    """One change in words, with the reading behind it (None while the driver is silent).

    `nbytes` is what it is about; 0 where nobody tells (a spill that shows in speed alone) or nothing is.
    """

    change: Change
    nbytes: int
    sentence: str
    reading: VramReading | None


class VramWatch:
    """Compares readings of one card. `look` may be called for every token: it reads once a period.

    `read` is a `VramReader` (or any function that gives readings and raises DriverFailed); `clock` gives seconds.
    """

    def __init__(
        self,
        read: Callable[[], VramReading],
        clock: Callable[[], float] = time.monotonic,
        period_seconds: float = PERIOD_SECONDS,
    ) -> None:
        self._read = read
        self._clock = clock
        self._period_seconds = period_seconds
        self._next_look = clock()
        self._silent = False
        self._others_bytes: int | None = None  # as last reported, or as first seen
        self._lower_since: float | None = None
        self._lower_peak_bytes = 0
        self._spilled = False
        self._speed = _UsualSpeed()

    def look(self, tokens_per_second: float | None = None) -> tuple[Observation, ...]:
        """What changed since the last look that found something; empty between two periods.

        `tokens_per_second`: the current decoding speed, None while nothing is decoded; it tells a spill from memory
        that merely lies idle.
        """
        now = self._clock()
        if now < self._next_look:
            return ()
        self._next_look = now + self._period_seconds
        try:
            reading = self._read()
        except DriverFailed as failure:
            return self._driver_silent(failure)
        found = [*self._driver_back(reading), *self._others(reading, now), *self._spill(reading, tokens_per_second)]
        return tuple(found)

    def _driver_silent(self, failure: DriverFailed) -> tuple[Observation, ...]:
        if self._silent:
            return ()
        self._silent = True
        return (Observation(Change.DRIVER_SILENT, 0, f"{failure.cause} {failure.remedy}", None),)

    def _driver_back(self, reading: VramReading) -> list[Observation]:
        if not self._silent:
            return []
        self._silent = False
        free = format_bytes(reading.free_bytes)
        return [Observation(Change.DRIVER_BACK, 0, f"The card's driver answers again: {free} are free.", reading)]

    def _others(self, reading: VramReading, now: float) -> list[Observation]:
        if reading.ours_bytes > reading.used_bytes:  # ours lies in RAM in part: what others hold is not known
            return []
        if self._others_bytes is None:
            self._others_bytes = reading.others_bytes
        grown_bytes = reading.others_bytes - self._others_bytes
        notice_bytes = max(_NOTICE_BYTES, reading.total_bytes // _NOTICE_SHARE)
        if grown_bytes > -notice_bytes:
            self._lower_since = None
        if grown_bytes >= notice_bytes:
            return [self._report(Change.OTHERS_TOOK, reading, reading.others_bytes)]
        if grown_bytes <= -notice_bytes:
            return self._lower(reading, now)
        return []

    def _lower(self, reading: VramReading, now: float) -> list[Observation]:
        """Others use less; believed once it has lasted, and only as much as was free all the time."""
        if self._lower_since is None:
            self._lower_since, self._lower_peak_bytes = now, 0
        self._lower_peak_bytes = max(self._lower_peak_bytes, reading.others_bytes)
        if now - self._lower_since < SETTLE_SECONDS:
            return []
        self._lower_since = None
        return [self._report(Change.OTHERS_GAVE_BACK, reading, self._lower_peak_bytes)]

    def _report(self, change: Change, reading: VramReading, others_bytes: int) -> Observation:
        assert self._others_bytes is not None
        nbytes = abs(others_bytes - self._others_bytes)
        self._others_bytes = others_bytes
        verb = "took" if change is Change.OTHERS_TOOK else "gave back"
        sentence = (
            f"Other programs {verb} {format_bytes(nbytes)} of the card's memory: "
            f"they hold {format_bytes(others_bytes)} now, {format_bytes(reading.free_bytes)} are free."
        )
        return Observation(change, nbytes, sentence, reading)

    def _spill(self, reading: VramReading, tokens_per_second: float | None) -> list[Observation]:
        if not reading.can_spill:
            return []
        slower = self._speed.times_slower(tokens_per_second)
        outside_bytes = max(reading.ours_bytes - reading.total_bytes, reading.allocated_bytes - reading.used_bytes, 0)
        full = reading.free_bytes < reading.total_bytes // _FULL_SHARE
        if slower >= _COLLAPSE and (outside_bytes >= _NOTICE_BYTES or full) and not self._spilled:
            self._spilled = True
            return [Observation(Change.SPILLED, outside_bytes, _spill_in_words(outside_bytes, slower), reading)]
        if self._spilled and tokens_per_second is not None and slower < _COLLAPSE:
            self._spilled = False
            return [Observation(Change.SPILL_OVER, 0, "The card answers at its usual speed again.", reading)]
        return []


class _UsualSpeed:
    """The median of recent speeds; a collapse is not taken into it, or it would soon be the usual."""

    def __init__(self) -> None:
        self._speeds: deque[float] = deque(maxlen=_SPEEDS_KEPT)

    def times_slower(self, speed: float | None) -> float:
        """How many times slower than usual this is; 1 where nothing is known yet."""
        if not speed:
            return 1.0
        slower = median(self._speeds) / speed if len(self._speeds) >= _SPEEDS_NEEDED else 1.0
        if slower < _COLLAPSE:
            self._speeds.append(speed)
        return slower


def _spill_in_words(outside_bytes: int, slower: float) -> str:
    moved = f"{format_bytes(outside_bytes)} of ours" if outside_bytes else "some of ours"
    sure = "has moved" if outside_bytes else "has probably moved"
    return (
        f"The card's memory is over-full and the system {sure} {moved} to RAM: answers are {slower:.1f} times "
        "slower than usual. A smaller cache, or closing other programs that use the card, is faster."
    )
