"""Which experts each decoding step really used, for replays."""

from __future__ import annotations

import threading
from collections.abc import Sequence

Step = list[tuple[int, tuple[int, ...]]]


class RoutingRecorder:
    """Collects routing while `record(True)`; told of every layer of every decoding step in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on = False
        self._steps: list[Step] = []

    def record(self, on: bool) -> None:
        """Starts afresh or stops."""
        with self._lock:
            if on:
                self._steps = []
            self._on = on

    def routed(self, layer: int, experts: Sequence[int]) -> None:
        """`layer` of the current step uses these distinct experts."""
        if not self._on:
            return
        with self._lock:
            if layer == 0 or not self._steps:
                self._steps.append([])
            self._steps[-1].append((layer, tuple(experts)))

    def take(self) -> list[Step]:
        """The recorded steps; empties the record."""
        with self._lock:
            steps, self._steps = self._steps, []
            return steps
