"""The transfer queue: demand before correction before prefetch, in chunks, so that a demand can overtake."""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable

from engine.cache.link import Link, Priority, Transfer
from engine.checkpoint.expert_key import ExpertKey

_ALIGNMENT_BYTES = 4096  # chunk borders that O_DIRECT accepts

OnMoved = Callable[[Transfer, int], None]
OnTransfer = Callable[[Transfer], None]
Chunk = tuple[Transfer, int, int]
"""Bytes [start, stop) of a transfer."""


class TransferQueue(ABC):
    """Which bytes move next, and every byte in flight. What moves them, and what time is, differs:
    threads and the wall clock in the engine, events and a virtual clock in simulations.

    `on_moved(transfer, nbytes)`, `on_arrival(transfer)` and `on_failure(transfer)` tell the owner what became of it.
    """

    def __init__(self, link: Link, on_moved: OnMoved, on_arrival: OnTransfer, on_failure: OnTransfer) -> None:
        self._link = link
        self._on_moved, self._on_arrival, self._on_failure = on_moved, on_arrival, on_failure
        self._queue: list[tuple[int, int, Transfer]] = []
        self._sequence = itertools.count()
        self._active: dict[ExpertKey, Transfer] = {}

    # -- what the cache asks for ----------------------------------------------------------------------------------

    @abstractmethod
    def now(self) -> float:
        """Seconds on the clock that transfers and the computation share."""

    def settle(self) -> None:  # noqa: B027 - where threads move the bytes, they also say when they are there
        """Takes note of all that has arrived until now."""

    @abstractmethod
    def wait(self) -> None:
        """Returns when a transfer has arrived or failed, or the queue was closed."""

    def pass_until(self, moment: float) -> None:
        """Returns at `moment`, where something else than a transfer is emulated to take until then."""
        raise NotImplementedError("Only on an emulated link is time let pass.")

    @abstractmethod
    def close(self) -> None:
        """Nothing moves any more. Idempotent."""

    def active(self, key: ExpertKey) -> Transfer | None:
        """The transfer of `key` that has not arrived yet."""
        return self._active.get(key)

    @property
    def in_flight(self) -> int:
        return len(self._active)

    def start(self, key: ExpertKey, slot: int, origin: Priority) -> Transfer:
        """Queues the load of `key` into `slot`."""
        total_bytes = self._link.transfer_bytes(key)
        transfer = Transfer(key, slot, total_bytes, origin, origin, self.now())
        self._active[key] = transfer
        self._push(transfer)
        return transfer

    def promote(self, transfer: Transfer, priority: Priority) -> None:
        """Raises a queued transfer; what is already moving keeps moving."""
        if priority < transfer.priority:
            transfer.priority = priority
            self._push(transfer)

    def cancel(self, transfer: Transfer) -> bool:
        """Takes back a transfer none of whose bytes has moved. False when it is too late."""
        if transfer.started or transfer.cancelled:
            return False
        transfer.cancelled = True
        del self._active[transfer.key]
        return True

    def cancel_queued(self) -> list[Transfer]:
        """Cancels whatever has not begun to move; returns it."""
        return [transfer for transfer in list(self._active.values()) if self.cancel(transfer)]

    # -- what moves the bytes asks for ----------------------------------------------------------------------------

    @abstractmethod
    def _work_queued(self) -> None:
        """There may be a chunk to move now."""

    def _push(self, transfer: Transfer) -> None:
        heapq.heappush(self._queue, (transfer.priority, next(self._sequence), transfer))
        self._work_queued()

    def _claim(self) -> Chunk | None:
        """The next chunk of the most urgent transfer, from now on in flight."""
        while self._queue and _has_nothing_to_claim(self._queue[0][2]):
            heapq.heappop(self._queue)
        if not self._queue:
            return None
        transfer = self._queue[0][2]
        start = transfer.claimed_bytes
        stop = min(start + self._chunk_bytes(transfer), transfer.total_bytes)
        transfer.claimed_bytes = stop
        transfer.chunks_in_flight += 1
        return transfer, start, stop

    def _chunk_bytes(self, transfer: Transfer) -> int:
        if transfer.priority is not Priority.DEMAND:
            return self._link.chunk_bytes
        share = -(-transfer.total_bytes // self._link.readers)
        return -(-share // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES

    def _account(self, chunk: Chunk, error: Exception | None) -> bool:
        """Books a chunk that is no longer in flight; True for the one that completes its transfer."""
        transfer, start, stop = chunk
        transfer.chunks_in_flight -= 1
        if error is None:
            transfer.moved_bytes += stop - start
            self._on_moved(transfer, stop - start)
        else:
            transfer.error = transfer.error or error
        if transfer.error is not None and not transfer.chunks_in_flight:
            self._end(transfer)
        return transfer.error is None and transfer.moved_bytes == transfer.total_bytes

    def _end(self, transfer: Transfer) -> None:
        """The transfer is over: arrived, or failed if it has an error."""
        if self._active.pop(transfer.key, None) is None:
            return
        if transfer.error is None:
            self._on_arrival(transfer)
        else:
            self._on_failure(transfer)


def _has_nothing_to_claim(transfer: Transfer) -> bool:
    done = transfer.claimed_bytes == transfer.total_bytes
    return done or transfer.cancelled or transfer.error is not None
