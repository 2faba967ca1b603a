"""The transfer queue on a virtual clock: one wire of a stated speed, events instead of threads."""

from __future__ import annotations

import threading
from collections import deque

from engine.cache.link import ExpertWeights, Link, Transfer
from engine.cache.links.emulated import EmulatedLink, EmulatedSpeed
from engine.cache.transfer_queue import Chunk, OnMoved, OnTransfer, TransferQueue
from engine.checkpoint.expert_key import ExpertKey


class VirtualLink(Link):
    """Experts that are only sizes; chunks as the emulated link cuts them."""

    readers = EmulatedLink.readers
    chunk_bytes = EmulatedLink.chunk_bytes

    def __init__(self, expert_bytes: int, speed: EmulatedSpeed) -> None:
        self.name = "virtual"
        self.speed = speed
        self._expert_bytes = expert_bytes

    def grow(self, slots: list[int]) -> None:
        """Nothing to provide."""

    def shrink(self, slots: list[int]) -> None:
        """Nothing to give back."""

    def transfer_bytes(self, key: ExpertKey) -> int:
        return self._expert_bytes

    def copy(self, transfer: Transfer, start: int, stop: int) -> None:
        raise NotImplementedError("A virtual link has no bytes: VirtualTransfers moves the clock instead.")

    def finish(self, transfer: Transfer) -> None:
        """Nothing to lay out."""

    def weights(self, key: ExpertKey, slot: int) -> ExpertWeights:
        return ExpertWeights(0, {})

    def close(self) -> None:
        """Nothing to close."""


class VirtualTransfers(TransferQueue):
    """Moves chunks one after another; `advance` and `wait` are all that moves the clock.

    As on the emulated link, latency delays an arrival but does not occupy the wire.
    """

    def __init__(
        self,
        link: VirtualLink,
        lock: threading.Lock,
        on_moved: OnMoved,
        on_arrival: OnTransfer,
        on_failure: OnTransfer,
    ) -> None:
        super().__init__(link, on_moved, on_arrival, on_failure)
        self._lock = lock
        self._speed = link.speed
        self._now = 0.0
        self._on_wire: tuple[float, Chunk] | None = None
        self._landing: deque[tuple[float, Transfer]] = deque()  # off the wire, not there yet; in order of time
        self._ended = 0
        self.busy_seconds = 0.0  # of the wire

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """The computation takes `seconds`; transfers go on meanwhile. Called without the lock."""
        with self._lock:
            until = self._now + seconds
            while (event := self._next_event()) is not None and event <= until:
                self._happen(event)
            self._now = until

    def wait(self) -> None:
        ended = self._ended
        while self._ended == ended:
            event = self._next_event()
            if event is None:
                raise RuntimeError("Nothing is on its way: the wait would never end.")
            self._happen(event)

    def close(self) -> None:
        self._queue.clear()
        self._active.clear()
        self._on_wire = None

    def _work_queued(self) -> None:
        if self._on_wire is None and (chunk := self._claim()) is not None:
            _, start, stop = chunk
            seconds = (stop - start) / self._speed.bytes_per_second
            self.busy_seconds += seconds
            self._on_wire = self._now + seconds, chunk

    def _end(self, transfer: Transfer) -> None:
        self._ended += 1
        super()._end(transfer)

    def _next_event(self) -> float | None:
        times = [entry[0] for entry in (self._on_wire, self._landing[0] if self._landing else None) if entry]
        return min(times, default=None)

    def _happen(self, event: float) -> None:
        """What is due at `event`, the earliest of all; callbacks may queue more."""
        self._now = event
        if self._landing and self._landing[0][0] == event:
            self._end(self._landing.popleft()[1])
            return
        assert self._on_wire is not None
        _, chunk = self._on_wire
        self._on_wire = None
        if self._account(chunk, None):
            self._landing.append((event + self._speed.latency_seconds, chunk[0]))
        self._work_queued()
