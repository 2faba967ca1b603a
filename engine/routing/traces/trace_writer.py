"""Writes recorded rows to the store in a thread of its own, so that no token waits for the disk."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress

from engine.errors import EngineError
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_store import TraceStore

QUEUED_PIECES = 8
PATIENCE_SECONDS = 5.0  # a disk that is slower than the model holds an answer up this long, once

CLOSING_SECONDS = 30.0


class TraceWriter:
    """A TraceSink. The first failure ends the writing for good; `problem` then says so in a sentence."""

    def __init__(self, store: TraceStore) -> None:
        self.problem: str | None = None
        self._store = store
        self._queue: queue.Queue[tuple[int, RoutingTrace] | None] = queue.Queue(QUEUED_PIECES)
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    def put(self, first: int, rows: RoutingTrace) -> None:
        """Never raises."""
        if self.problem is not None:
            return
        try:
            self._queue.put((first, rows), timeout=PATIENCE_SECONDS)
        except queue.Full:
            self.problem = f"Recording of routing stopped: {self._store.path} takes longer to write than to record."

    def wait(self) -> None:
        """Returns when everything put so far is written, or given up."""
        self._queue.join()

    def close(self) -> None:
        """Writes what is queued and ends the thread; a disk that no longer answers is left behind."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=CLOSING_SECONDS)
        self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            if self.problem is None:
                self._write(*piece)
            self._queue.task_done()

    def _write(self, first: int, rows: RoutingTrace) -> None:
        try:
            self._store.append(first, rows)
        except EngineError as error:
            self.problem = f"Recording of routing stopped: {error.cause} {error.remedy}"
        except Exception as error:  # whatever it is, the answer goes on
            self.problem = f"Recording of routing stopped: {type(error).__name__}: {error}."
