"""Transfers over a link that only states how fast it is: nothing is copied and no thread is needed.

Bytes have arrived when the stated speed says so. That is worked out whenever somebody asks, so that the computation is
disturbed as little as by a graphics card's copy engine, and the same on the wall clock and on a virtual one.
"""

from __future__ import annotations

import re
import threading
import time
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass

from engine.cache.link import Link, Transfer
from engine.cache.transfer_queue import Chunk, OnMoved, OnTransfer, TransferQueue
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import InvalidSetting

_SPECIFICATION = re.compile(
    r"emulated:(?P<rate>\d+(\.\d+)?)(?P<unit>[GM])Bps(\+(?P<latency>\d+(\.\d+)?)us)?"
    r"(/host:(?P<host>\d+(\.\d+)?)GBps)?"
)
_SPIN_SECONDS = 5e-3  # shorter waits do not sleep: what is computed next would run slower, as beside no real card


@dataclass(frozen=True)
class EmulatedSpeed:
    """`host_bytes_per_second`: how fast the processor computes with experts where they wait; None: it does not."""

    bytes_per_second: float
    latency_seconds: float = 0.0
    host_bytes_per_second: float | None = None

    @staticmethod
    def is_stated(specification: str) -> bool:
        """Whether this has the form of a speed."""
        return _SPECIFICATION.fullmatch(specification) is not None

    @classmethod
    def parse(cls, specification: str) -> EmulatedSpeed:
        """From "emulated:2.5GBps", "emulated:2.5GBps+20us" or "emulated:2.5GBps/host:10GBps". Raises InvalidSetting."""
        match = _SPECIFICATION.fullmatch(specification)
        if match is None or 0 in (float(match["rate"]), float(match["host"] or 1)):
            raise InvalidSetting(
                f"{specification!r} is not an emulated link.",
                'Write it like "emulated:2.5GBps", "emulated:2.5GBps+20us" or "emulated:2.5GBps/host:10GBps".',
            )
        unit = 1e9 if match["unit"] == "G" else 1e6
        host = float(match["host"]) * 1e9 if match["host"] else None
        return cls(float(match["rate"]) * unit, float(match["latency"] or 0) / 1e6, host)


class TimedLink(Link):
    """One wire of a stated speed. Transfers use it one after another; a more urgent one has to wait until the chunk on
    the wire is through. Latency delays an arrival but does not occupy the wire.
    """

    readers = 1
    chunk_bytes = 1 << 18  # a card's copy engine reaches its full speed with less
    speed: EmulatedSpeed

    @property
    def computes_on_host(self) -> bool:  # type: ignore[override]
        return self.speed.host_bytes_per_second is not None

    def host_seconds(self, key: ExpertKey) -> float:
        assert self.speed.host_bytes_per_second is not None
        return self.transfer_bytes(key) / self.speed.host_bytes_per_second

    def grow(self, slots: list[int]) -> None:
        """Nothing to provide: a slot here is a right to hold, the bytes stay where they are."""

    def shrink(self, slots: list[int]) -> None:
        """Nothing to give back."""

    def copy(self, transfer: Transfer, start: int, stop: int) -> None:
        raise NotImplementedError("Nothing is copied over a timed link: TimedTransfers says when it has arrived.")

    def finish(self, transfer: Transfer) -> None:
        """The far copy is already in the layout that is computed with."""


class TimedTransfers(TransferQueue):
    """Transfers one after another, as events on a clock. What is moved on a guess is in chunks only when something more
    urgent wants the wire: every event takes the computation's time.
    """

    def __init__(
        self, link: TimedLink, lock: threading.Lock, on_moved: OnMoved, on_arrival: OnTransfer, on_failure: OnTransfer
    ) -> None:
        super().__init__(link, on_moved, on_arrival, on_failure)
        self._lock = lock
        self._speed = link.speed
        self._wire_free_at = 0.0
        self._on_wire: tuple[float, Chunk] | None = None  # and when it will be off it
        self._began = 0.0  # when what is on the wire was put there
        self._landing: deque[tuple[float, Transfer]] = deque()  # off the wire, not there yet; in order of time
        self._ended = 0
        self._closed = False

    def settle(self) -> None:
        self._settle_until(self.now())

    def wait(self) -> None:
        ended = self._ended
        while self._ended == ended and not self._closed:
            event = self._next_event()
            if event is None:
                raise RuntimeError("Nothing is on its way: the wait would never end.")
            self._pause_until(event)
            self._settle_until(event)

    def pass_until(self, moment: float) -> None:
        while (event := self._next_event()) is not None and event <= moment:
            self._pause_until(event)
            self._settle_until(event)
        self._pause_until(moment)

    @abstractmethod
    def _pause_until(self, moment: float) -> None:
        """Returns at `moment`, or earlier when closed."""

    def _settle_until(self, moment: float) -> None:
        while (event := self._next_event()) is not None and event <= moment:
            self._happen(event)

    def _happen(self, event: float) -> None:
        """What is due at `event`, the earliest of all; callbacks may queue more."""
        if self._landing and self._landing[0][0] == event:
            self._end(self._landing.popleft()[1])
            return
        assert self._on_wire is not None
        _, chunk = self._on_wire
        self._on_wire = None
        if self._account(chunk, None):
            self._landing.append((event + self._speed.latency_seconds, chunk[0]))
        self._work_queued()

    def _next_event(self) -> float | None:
        if self._landing and (self._on_wire is None or self._landing[0][0] <= self._on_wire[0]):
            return self._landing[0][0]
        return None if self._on_wire is None else self._on_wire[0]

    def _push(self, transfer: Transfer) -> None:
        if self._on_wire is not None:
            self._cut_short(self._on_wire[1], transfer)
        super()._push(transfer)

    def _work_queued(self) -> None:
        """What was waiting begins the moment the wire is free, however late that is noticed."""
        if self._on_wire is None and (chunk := self._claim()) is not None:
            transfer, start, stop = chunk
            self._began = max(self._wire_free_at, transfer.submitted_at)
            self._put_on_wire(transfer, start, stop)

    def _put_on_wire(self, transfer: Transfer, start: int, stop: int) -> None:
        self._wire_free_at = self._began + (stop - start) / self._speed.bytes_per_second
        self._on_wire = self._wire_free_at, (transfer, start, stop)

    def _chunk_bytes(self, transfer: Transfer) -> int:
        return transfer.total_bytes

    def _cut_short(self, chunk: Chunk, urgent: Transfer) -> None:
        """The transfer on the wire goes no further than the chunk that it is in, where `urgent` is more urgent."""
        transfer, start, stop = chunk
        if transfer.priority <= urgent.priority or transfer is urgent:
            return
        moved = max(self.now() - self._began, 0.0) * self._speed.bytes_per_second
        through = start + (int(moved) // self._link.chunk_bytes + 1) * self._link.chunk_bytes
        if through < stop:
            transfer.claimed_bytes = through
            self._put_on_wire(transfer, start, through)

    def _end(self, transfer: Transfer) -> None:
        self._ended += 1
        super()._end(transfer)


class WallClockTransfers(TimedTransfers):
    """Timed transfers in real time. All methods but `close` are called with `lock` held."""

    def __init__(
        self, link: TimedLink, lock: threading.Lock, on_moved: OnMoved, on_arrival: OnTransfer, on_failure: OnTransfer
    ) -> None:
        super().__init__(link, lock, on_moved, on_arrival, on_failure)
        self._closing = threading.Condition(lock)

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        """Idempotent; call without the lock."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._active.clear()
            self._closing.notify_all()

    def _pause_until(self, moment: float) -> None:
        while (left := moment - time.perf_counter()) > 0 and not self._closed:
            if left > _SPIN_SECONDS:
                self._closing.wait(left - _SPIN_SECONDS)
