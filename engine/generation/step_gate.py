"""Lets visitors in between two steps of the computation, ahead of the next step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StepGate:
    """A lock on which visitors (a resize) go before the computation, which would otherwise take it again at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._visitors = 0
        self._taken = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Held for one token or prefill chunk."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken and not self._visitors)
            self._taken = True
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Held by whoever changes the engine; waits for the current step only."""
        with self._changed:
            self._visitors += 1
            self._changed.wait_for(lambda: not self._taken)
            self._visitors -= 1
            self._taken = True
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()
