"""The transfer queue: demand before correction before prefetch, in chunks, so that a demand can overtake."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from engine.cache.link import Link, Priority, Transfer
from engine.checkpoint.expert_key import ExpertKey

_ALIGNMENT_BYTES = 4096  # chunk borders that O_DIRECT accepts


class Transfers:
    """Owns the reader threads and every byte in flight.

    All methods but `close` are called with `lock` held. Each reader takes the next chunk of the most urgent
    transfer, so several readers share one demand and nothing speculative holds a demand up for longer than a chunk.

    `on_moved(transfer, nbytes)`, `on_arrival(transfer)` and `on_failure(transfer)` are called with the lock held.
    """

    def __init__(
        self,
        link: Link,
        lock: threading.Lock,
        on_moved: Callable[[Transfer, int], None],
        on_arrival: Callable[[Transfer], None],
        on_failure: Callable[[Transfer], None],
    ) -> None:
        self._link = link
        self._lock = lock
        self._work = threading.Condition(lock)
        self._on_moved, self._on_arrival, self._on_failure = on_moved, on_arrival, on_failure
        self._queue: list[tuple[int, int, Transfer]] = []
        self._sequence = itertools.count()
        self._active: dict[ExpertKey, Transfer] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._read, name=f"expertflow-reader-{number}", daemon=True)
            for number in range(link.readers)
        ]
        for thread in self._threads:
            thread.start()

    def active(self, key: ExpertKey) -> Transfer | None:
        """The transfer of `key` that has not arrived yet."""
        return self._active.get(key)

    @property
    def in_flight(self) -> int:
        return len(self._active)

    def start(self, key: ExpertKey, slot: int, origin: Priority) -> Transfer:
        """Queues the load of `key` into `slot`."""
        total_bytes = self._link.transfer_bytes(key)
        transfer = Transfer(key, slot, total_bytes, origin, origin, time.perf_counter())
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

    def close(self) -> None:
        """Stops the readers after their current chunk. Idempotent; call without the lock."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()
        with self._lock:
            self._queue.clear()
            self._active.clear()

    def _push(self, transfer: Transfer) -> None:
        heapq.heappush(self._queue, (transfer.priority, next(self._sequence), transfer))
        self._work.notify_all()

    def _read(self) -> None:
        while True:
            with self._lock:
                chunk = self._claim()
                if chunk is None:
                    return
            transfer, start, stop = chunk
            error = self._copy(transfer, start, stop)
            with self._lock:
                complete = self._account(transfer, stop - start, error)
            if complete:
                self._arrive(transfer)

    def _claim(self) -> tuple[Transfer, int, int] | None:
        """The next chunk of the most urgent transfer; waits for work, None when closing."""
        while not self._closed:
            while self._queue and self._has_nothing_to_claim(self._queue[0]):
                heapq.heappop(self._queue)
            if self._queue:
                transfer = self._queue[0][2]
                start = transfer.claimed_bytes
                stop = min(start + self._chunk_bytes(transfer), transfer.total_bytes)
                transfer.claimed_bytes = stop
                transfer.chunks_in_flight += 1
                return transfer, start, stop
            self._work.wait()
        return None

    @staticmethod
    def _has_nothing_to_claim(entry: tuple[int, int, Transfer]) -> bool:
        transfer = entry[2]
        done = transfer.claimed_bytes == transfer.total_bytes
        return done or transfer.cancelled or transfer.error is not None

    def _chunk_bytes(self, transfer: Transfer) -> int:
        if transfer.priority is not Priority.DEMAND:
            return self._link.chunk_bytes
        share = -(-transfer.total_bytes // self._link.readers)
        return -(-share // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES

    def _copy(self, transfer: Transfer, start: int, stop: int) -> Exception | None:
        try:
            self._link.copy(transfer, start, stop)
        except Exception as error:  # whatever it is, the waiting computation must hear of it
            return error
        return None

    def _account(self, transfer: Transfer, nbytes: int, error: Exception | None) -> bool:
        """Books a chunk; True for the one chunk that completes its transfer."""
        transfer.chunks_in_flight -= 1
        if error is None:
            transfer.moved_bytes += nbytes
            self._on_moved(transfer, nbytes)
        else:
            transfer.error = transfer.error or error
        if transfer.error is not None and not transfer.chunks_in_flight:
            self._fail(transfer)
        return transfer.error is None and transfer.moved_bytes == transfer.total_bytes

    def _arrive(self, transfer: Transfer) -> None:
        try:
            self._link.finish(transfer)
        except Exception as error:
            transfer.error = error
        with self._lock:
            if transfer.error is not None:
                self._fail(transfer)
            elif self._active.pop(transfer.key, None) is not None:
                self._on_arrival(transfer)

    def _fail(self, transfer: Transfer) -> None:
        if self._active.pop(transfer.key, None) is not None:
            self._on_failure(transfer)
