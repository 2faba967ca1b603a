"""Loads on a guess: keeps the link busy with what the prefetcher names whenever nothing is demanded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.cache.link import Priority, Transfer
from engine.cache.residency import Residency
from engine.cache.transfer_queue import TransferQueue
from engine.checkpoint.expert_key import ExpertKey
from engine.routing.prefetcher import Guess, Prefetcher
from engine.routing.wave_prefetcher import WavePrefetcher

MOST_QUEUED = 2  # one on the wire and one to follow it without a gap: a guess decided later is a better guess


class Speculation:
    """Starts, cancels and counts speculative transfers. Every method is called with the cache's lock held.

    `on_eviction` is called after a slot was taken from somebody.
    """

    def __init__(
        self, residency: Residency, transfers: TransferQueue, prefetcher: Prefetcher, on_eviction: Callable[[], None]
    ) -> None:
        self.prefetcher: Prefetcher | WavePrefetcher = prefetcher  # whose guesses count in the step in progress
        self._residency, self._transfers, self._on_eviction = residency, transfers, on_eviction
        self._guesses: dict[ExpertKey, Transfer] = {}  # not arrived yet
        self.routing: tuple[int, Any, Any, Any] | None = None  # known, not taken into account yet

    def correct(self) -> int:
        """Takes `routing` into account: wrong guesses are taken back, others follow. Returns the bytes spared."""
        says_more = False
        if self.routing is not None:
            says_more = self.prefetcher.observed(*self.routing)
            self.routing = None
        spared = self._cancel_wrong()
        if says_more or spared:
            self.pump()
        return spared

    def pump(self) -> None:
        """Queues what is worth loading, up to `MOST_QUEUED` transfers; corrections do not count what they overtake."""
        while (most := self._room()) is not None:
            if most is Priority.CORRECTION and not self.prefetcher.may_correct():
                return
            guess = self.prefetcher.next(self._residency.free_slots > 0, self._residency.blocked_for_guesses)
            origin = Priority.CORRECTION if guess is not None and guess.corrects else Priority.PREFETCH
            if guess is None or origin > most:
                return
            self._load(guess, origin)

    def _room(self) -> Priority | None:
        """The least urgent kind of transfer that may be queued now; None where there is no room for any."""
        if len(self._guesses) < MOST_QUEUED:
            return Priority.PREFETCH
        urgent = sum(transfer.priority <= Priority.CORRECTION for transfer in self._guesses.values())
        return Priority.CORRECTION if urgent < MOST_QUEUED else None

    def _cancel_wrong(self) -> int:
        """Takes back guesses that have not begun to move and are not likely any more. Returns the bytes spared."""
        spared = 0
        for key, transfer in list(self._guesses.items()):
            recallable = not transfer.started and transfer.priority is not Priority.DEMAND
            if recallable and self.prefetcher.is_wrong(key) and self._transfers.cancel(transfer):
                del self._guesses[key]
                self._residency.abort(key)
                spared += transfer.total_bytes
        return spared

    def ended(self, transfer: Transfer) -> None:
        """A transfer arrived, failed or was cancelled by somebody else."""
        self._guesses.pop(transfer.key, None)
        if transfer.error is not None:
            self.prefetcher.failed(transfer.key)

    def _load(self, guess: Guess, origin: Priority) -> None:
        slot = self._residency.reserve(guess.key, guess.victim)
        assert slot is not None
        self._on_eviction()
        self._guesses[guess.key] = self._transfers.start(guess.key, slot, origin)
