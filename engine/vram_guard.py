"""While a model lies on a card: when other programs take the card's memory or give it back, the cache follows."""

from __future__ import annotations

import threading
from collections.abc import Callable

from engine.errors import NotEnoughMemory
from engine.hardware.memory_plan import MIB, Footprint, make_plan
from engine.hardware.vram_reading import VramReading
from engine.hardware.vram_watch import PERIOD_SECONDS, Change, Observation, VramWatch

_FOLLOWED = (Change.OTHERS_TOOK, Change.OTHERS_GAVE_BACK, Change.SPILLED)
_EXPLICIT_MARGIN_BYTES = 256 * MIB  # kept free under a budget that was set by hand, which asks for no margin


def slots_within(needs: Footprint, budget: str, reading: VramReading, outside_bytes: int = 0) -> int:
    """Slots for `budget` on a card as full as `reading` says, when `outside_bytes` of ours lie in RAM already.

    A budget set by hand is never exceeded, and undercut only where the card has no room for it.
    """
    reach = max(0, reading.within_reach_bytes - outside_bytes)
    if budget == "auto":
        try:
            return make_plan(needs, budget, reach).slots
        except NotEnoughMemory:
            return needs.minimum_slots
    room = (reach - _EXPLICIT_MARGIN_BYTES - needs.fixed_bytes) // needs.slot_bytes
    return max(needs.minimum_slots, min(make_plan(needs, budget, reach).slots, room))


class VramGuard:
    """A thread that looks once a period, whether an answer is written or not. Started by `start`, ended by `close`.

    `follow(observation)` is called for each change that asks for another size; `speed()` tells tokens per second
    while an answer is written, else None.
    """

    def __init__(
        self,
        read: Callable[[], VramReading],
        follow: Callable[[Observation], None],
        speed: Callable[[], float | None],
        period_seconds: float = PERIOD_SECONDS,
    ) -> None:
        self._watch = VramWatch(read, period_seconds=period_seconds / 2)
        self._follow, self._speed = follow, speed
        self._period_seconds = period_seconds
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="expertflow-vram", daemon=True)
        self.said: str | None = None
        """The newest observation, for people."""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Waits for the thread. Idempotent; do not hold what `follow` needs."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(self._period_seconds):
            for observation in self._watch.look(self._speed()):
                self.said = observation.sentence
                if observation.change in _FOLLOWED:
                    self._follow(observation)
