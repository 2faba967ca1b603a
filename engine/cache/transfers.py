"""Threads that move what the transfer queue holds, over a real link and on the wall clock."""

from __future__ import annotations

import threading
import time

from engine.cache.link import Link, Transfer
from engine.cache.transfer_queue import Chunk, OnMoved, OnTransfer, TransferQueue


class Transfers(TransferQueue):
    """Owns the reader threads. Each takes the next chunk of the most urgent transfer, so several readers share one
    demand and nothing speculative holds a demand up for longer than a chunk.

    All methods but `close` are called with `lock` held; so are the callbacks.
    """

    def __init__(
        self, link: Link, lock: threading.Lock, on_moved: OnMoved, on_arrival: OnTransfer, on_failure: OnTransfer
    ) -> None:
        super().__init__(link, on_moved, on_arrival, on_failure)
        self._lock = lock
        self._work = threading.Condition(lock)
        self._ended = threading.Condition(lock)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._read, name=f"expertflow-reader-{number}", daemon=True)
            for number in range(link.readers)
        ]
        for thread in self._threads:
            thread.start()

    def now(self) -> float:
        return time.perf_counter()

    def wait(self) -> None:
        self._ended.wait()

    def close(self) -> None:
        """Stops the readers after their current chunk. Idempotent; call without the lock."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
            self._ended.notify_all()
        for thread in self._threads:
            thread.join()
        with self._lock:
            self._queue.clear()
            self._active.clear()

    def _work_queued(self) -> None:
        self._work.notify_all()

    def _read(self) -> None:
        while True:
            with self._lock:
                chunk = self._claim_or_wait()
            if chunk is None:
                return
            error = self._copy(chunk)
            with self._lock:
                complete = self._account(chunk, error)
            if complete:
                self._finish(chunk[0])

    def _claim_or_wait(self) -> Chunk | None:
        """Waits for work; None when closing."""
        while not self._closed:
            if (chunk := self._claim()) is not None:
                return chunk
            self._work.wait()
        return None

    def _copy(self, chunk: Chunk) -> Exception | None:
        try:
            self._link.copy(*chunk)
        except Exception as error:  # whatever it is, the waiting computation must hear of it
            return error
        return None

    def _finish(self, transfer: Transfer) -> None:
        try:
            self._link.finish(transfer)
        except Exception as error:
            transfer.error = error
        with self._lock:
            self._end(transfer)

    def _end(self, transfer: Transfer) -> None:
        super()._end(transfer)
        self._ended.notify_all()
