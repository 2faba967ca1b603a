"""Transfers on a virtual clock, which only the simulated computation moves."""

from __future__ import annotations

from engine.cache.link import ExpertWeights
from engine.cache.timed_transfers import EmulatedSpeed, TimedLink, TimedTransfers
from engine.checkpoint.expert_key import ExpertKey


class VirtualLink(TimedLink):
    """Experts that are only sizes."""

    def __init__(self, expert_bytes: int, speed: EmulatedSpeed) -> None:
        self.name = "virtual"
        self.speed = speed
        self._expert_bytes = expert_bytes

    def transfer_bytes(self, key: ExpertKey) -> int:
        return self._expert_bytes

    def weights(self, key: ExpertKey, slot: int) -> ExpertWeights:
        return ExpertWeights(0, {})

    def host_weights(self, key: ExpertKey) -> ExpertWeights:
        return ExpertWeights(0, {})

    def close(self) -> None:
        """Nothing to close."""


class VirtualTransfers(TimedTransfers):
    """`advance` and `wait` are all that moves the clock."""

    _now = 0.0

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """The computation takes `seconds`; transfers go on meanwhile. Called without the lock."""
        with self._lock:
            until = self._now + seconds
            self._settle_until(until)
            self._now = until

    def close(self) -> None:
        self._closed = True

    def _pause_until(self, moment: float) -> None:
        self._now = moment

    def _happen(self, event: float) -> None:
        self._now = event  # what callbacks start now is submitted now
        super()._happen(event)
