"""What the cache did, second by second: the engine's counters, sampled while it works."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from app.engine_host import EngineHost
from engine.errors import EngineClosed

SAMPLE_SECONDS = 1.0
SAMPLES_KEPT = 120
COUNTERS = (
    "hits",
    "late",
    "misses",
    "bytes_demand",
    "bytes_correction",
    "bytes_prefetch_used",
    "bytes_prefetch_wasted",
    "stall_seconds",
    "tokens",
)


@dataclass(frozen=True)
class Sample:
    """What happened in one interval of work."""

    seconds: float
    hits: int
    late: int
    misses: int
    bytes_demand: int
    bytes_correction: int
    bytes_prefetch_used: int
    bytes_prefetch_wasted: int
    stall_seconds: float
    tokens: int


class PanelHistory:
    """A ring of the last two minutes of work; idle time leaves no samples."""

    def __init__(self, host: EngineHost) -> None:
        self._host = host
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)
        self._last: dict[str, float] | None = None
        self._last_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="panel-history", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def samples(self) -> list[Sample]:
        """Oldest first."""
        return list(self._samples)

    def sample(self) -> None:
        """Takes one sample: called once a second by the thread."""
        engine = self._host.engine
        if engine is None:
            return
        try:
            now, counters = time.monotonic(), engine.stats().to_dict()
        except EngineClosed:  # the program is ending; the last samples stay
            return
        current = {name: counters.get(name, 0) for name in COUNTERS}
        last, seconds = self._last, now - self._last_at
        self._last, self._last_at = current, now
        if last is None:
            return
        change = {name: max(current[name] - last[name], 0) for name in COUNTERS}
        if any(change.values()):
            self._samples.append(Sample(seconds=seconds, **change))  # type: ignore[arg-type]

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.sample()
