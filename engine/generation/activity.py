"""What the engine is doing right now and how fast: written by the computation, read by panels from any thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_RECENT_TOKENS = 16


class Activity:
    """Phase, prefill progress and token times of the answers in progress or the last one, and totals since load."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.phase = "idle"
        self.prefill_done = 0
        self.prefill_total = 0
        self.time_to_first_token_seconds: float | None = None
        self._step_seconds: deque[float] = deque(maxlen=_RECENT_TOKENS)
        self._tokens = 0
        self._decode_steps = 0
        self._decode_seconds = 0.0
        self._prefill_tokens = 0
        self._prefill_seconds = 0.0

    def chats(self, reading: int, decoding: int) -> None:
        """So many prompts are being read, so many answers written."""
        with self._lock:
            if self.phase == "idle" and reading:
                self.time_to_first_token_seconds = None
                self._step_seconds.clear()
            self.phase = "decode" if decoding else "prefill" if reading else "idle"

    def prefill_planned(self, done: int, total: int) -> None:
        """Of the prompt that is now read on, tokens that were not there before."""
        self.prefill_done, self.prefill_total = done, total

    @contextmanager
    def prefill(self, tokens: int) -> Iterator[None]:
        """Around one prefill pass of `tokens` rows."""
        started = time.perf_counter()
        yield
        with self._lock:
            self.prefill_done += tokens
            self._prefill_tokens += tokens
            self._prefill_seconds += time.perf_counter() - started

    @contextmanager
    def step(self, tokens: int = 1) -> Iterator[None]:
        """Around the computation and choice of one decoded token, or of one for each of several chats."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        with self._lock:
            self._decode_steps += tokens
            self._decode_seconds += seconds
            self._step_seconds.append(seconds / tokens)

    def token(self, first_after_seconds: float | None = None) -> None:
        """A token was chosen: the first of an answer so long after it was asked for."""
        with self._lock:
            self._tokens += 1
            if first_after_seconds is not None:
                self.time_to_first_token_seconds = first_after_seconds

    @property
    def recent_tokens_per_second(self) -> float | None:
        """Over the last few tokens of the current or last answer; None before its second token."""
        with self._lock:
            total = sum(self._step_seconds)
            return len(self._step_seconds) / total if total else None

    def to_stats_fields(self) -> dict[str, Any]:
        """The part of EngineStats that is about tokens and time."""
        with self._lock:
            return {
                "tokens": self._tokens,
                "decode_steps": self._decode_steps,
                "decode_seconds": self._decode_seconds,
                "prefill_tokens": self._prefill_tokens,
                "prefill_seconds": self._prefill_seconds,
            }
