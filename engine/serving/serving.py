"""The queue in front of a model and the one thread that decodes: any number of callers, in fair order."""

from __future__ import annotations

import threading

from engine.errors import EngineBusy, EngineClosed
from engine.model.kernels import release_threads
from engine.serving.decoding import Decoding
from engine.serving.fair_queue import FairQueue
from engine.serving.request import Request, Submission


class Serving:
    """The thread starts with the first request and ends in `close`; errors reach the request they belong to."""

    def __init__(self, decoding: Decoding, waiting_at_most: int) -> None:
        self._decoding = decoding
        self._changed = threading.Condition()
        self._queue: FairQueue[Request] = FairQueue(waiting_at_most)
        self._running: list[Request] = []  # taken from the queue; a few of them may have ended
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, request: Request, caller: str) -> Submission:
        """Raises EngineBusy when too many wait already, of all callers or of this one, and EngineClosed."""
        with self._changed:
            if self._closed:
                raise _closed()
            if not self._queue.has_room(caller):
                raise self._busy(caller)
            self._queue.put(request, caller)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="decoding", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return Submission(request, self._position, self._cancel)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        with self._changed:
            return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        with self._changed:
            return sum(not request.answer.done() for request in self._running)

    @property
    def context_used(self) -> int:
        """Tokens of the chat that was answered last, or is."""
        return self._decoding.context_used

    def cancel_all(self) -> None:
        """Every request, running or waiting, ends as cancelled."""
        with self._changed:
            requests = [*self._running, *self._queue.in_order()]
        for request in requests:
            self._cancel(request)

    def close(self) -> None:
        """Ends the running answers after their current token as cancelled; those that wait fail with EngineClosed.
        Returns when the thread has ended. Idempotent.
        """
        with self._changed:
            self._closed = True
            for request in self._running:
                request.cancel()
            while (waiting := self._queue.pop()) is not None:
                waiting.fail(_closed())
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _busy(self, caller: str) -> EngineBusy:
        remedy = "Ask again when some of them are answered."
        if self._queue.is_full:
            return EngineBusy(f"{len(self._queue)} requests are waiting for an answer already.", remedy)
        return EngineBusy(
            f"{self._queue.of(caller)} requests of the same caller are waiting already; the room left is for others.",
            remedy,
        )

    def _cancel(self, request: Request) -> None:
        request.cancel()
        with self._changed:
            waited = self._queue.remove(request)
        if waited:
            request.tell(request.cancellation())

    def _position(self, request: Request) -> int | None:
        with self._changed:
            waiting = self._queue.in_order()
        return waiting.index(request) if request in waiting else None

    # -- the decoding thread --------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while self._admit():
            try:
                self._decoding.turn()
            except BaseException as error:  # the thread goes on: whoever asks next shall be answered
                self._decoding.fail_all(error)

    def _admit(self) -> bool:
        """Gives free places to those who wait; waits while there is nothing to do. False: closed, and all have left."""
        while True:
            with self._changed:
                self._running = [member.request for member in self._decoding.members]
                if not self._running and not self._queue:
                    release_threads()  # another engine of this process may be the next to compute
                self._changed.wait_for(lambda: self._running or self._queue or self._closed)
                request = self._queue.pop() if self._decoding.has_place else None
                if request is None:
                    return bool(self._running)
                self._running.append(request)
            self._join(request)

    def _join(self, request: Request) -> None:
        try:
            self._decoding.join(request)
        except BaseException as error:
            request.fail(error)


def _closed() -> EngineClosed:
    return EngineClosed("The engine was closed.", "Load the model again.")
