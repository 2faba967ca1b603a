"""A card that does nothing until it must, in an order of its own choosing, and notices what nobody ordered.

Everything enqueued waits in its stream. Only `synchronize`, `drain` and chance make it happen, stream by stream at
random: whatever the calls do not order happens in the wrong order sooner or later. Copies read their source and
computations their operands at that late moment, so memory that was used again too early shows as wrong bytes.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(eq=False)
class FakeEvent:
    records: int = 0  # enqueued
    happened: int = 0


@dataclass(eq=False)
class FakeStream:
    urgent: bool = False
    queue: deque[tuple[str, Callable[[], bool]]] = field(default_factory=deque)
    """(what, try): `try` returns False while it must wait."""


class FakeCard:
    """`CardCalls` with `card_bytes` of memory; `lazy=False` does everything at once, as engines on tensors of the CPU
    need it. `calls` counts what was asked for.
    """

    def __init__(self, card_bytes: int = 1 << 40, seed: int = 0, lazy: bool = True, lockable_bytes: int = 1 << 40):
        self.device = torch.device("cpu")
        self.card_bytes, self.lockable_bytes = card_bytes, lockable_bytes
        self.locked: dict[int, int] = {}
        self.calls: Counter[str] = Counter()
        self.taken_by_others = 0
        self.taken_unseen = 0  # what the driver does not tell of, such as holes between pieces
        self._allocated: list[tuple[StorageWeakRef, int]] = []
        self._lazy = lazy
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._compute = FakeStream()
        self._streams = [self._compute]

    # -- CardCalls ------------------------------------------------------------------------------------------------

    def stream(self, urgent: bool) -> FakeStream:
        made = FakeStream(urgent)
        self._streams.append(made)
        return made

    def compute_stream(self) -> FakeStream:
        return self._compute

    def event(self) -> FakeEvent:
        return FakeEvent()

    def record(self, event: FakeEvent, stream: FakeStream) -> None:
        with self._lock:
            event.records += 1
            number = event.records

            def happen() -> bool:
                event.happened = max(event.happened, number)
                return True

            self._enqueue(stream, "record", happen)

    def wait(self, stream: FakeStream, event: FakeEvent) -> None:
        with self._lock:
            number = event.records
            self._enqueue(stream, "wait", lambda: event.happened >= number)

    def synchronize(self, event: FakeEvent) -> None:
        with self._lock:
            self.calls["synchronize"] += 1
            number = event.records
            assert number, "an event that was never recorded cannot be waited for"
        while True:
            with self._lock:
                if event.happened >= number:
                    return
                assert self._step(), "the streams wait for one another"

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: FakeStream) -> None:
        assert target.shape == source.shape and target.dtype == source.dtype == torch.uint8

        def happen() -> bool:
            target.copy_(source)
            return True

        self._enqueue(stream, "copy", happen)

    def empty(self, rows: int, row_bytes: int) -> torch.Tensor:
        self.calls["empty"] += 1
        if self.free_bytes() - self.taken_unseen < rows * row_bytes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {rows * row_bytes} bytes (injected).")
        slab = torch.full((rows, row_bytes), 170, dtype=torch.uint8)
        self._allocated.append((StorageWeakRef(slab.untyped_storage()), slab.nbytes))
        return slab

    def release_unused(self) -> None:
        self.calls["release_unused"] += 1

    def free_bytes(self) -> int:
        return self.card_bytes - self.taken_by_others - self.allocated_bytes

    def reserved_bytes(self) -> int:
        return self.allocated_bytes

    def lock(self, address: int, nbytes: int) -> bool:
        if sum(self.locked.values()) + nbytes > self.lockable_bytes:
            return False
        self.locked[address] = nbytes
        return True

    def unlock(self, address: int) -> None:
        del self.locked[address]

    # -- tests ----------------------------------------------------------------------------------------------------

    def compute(self, work: Callable[[], None]) -> None:
        """Enqueues a kernel."""

        def happen() -> bool:
            work()
            return True

        self._enqueue(self._compute, "compute", happen)

    def run_some(self, steps: int) -> None:
        """Lets up to so many things happen."""
        for _ in range(steps):
            with self._lock:
                if not self._step():
                    return

    def drain(self) -> None:
        """Everything that was enqueued happens."""
        with self._lock:
            while self._step():
                pass
            assert not any(stream.queue for stream in self._streams), "the streams wait for one another"

    @property
    def allocated_bytes(self) -> int:
        """Of tensors that something still refers to."""
        self._allocated = [(storage, nbytes) for storage, nbytes in self._allocated if not storage.expired()]
        return sum(nbytes for _, nbytes in self._allocated)

    def _enqueue(self, stream: FakeStream, what: str, happen: Callable[[], bool]) -> None:
        with self._lock:
            self.calls[what] += 1
            stream.queue.append((what, happen))
            if not self._lazy:
                self.drain()

    def _step(self) -> bool:
        """Something that can happen does; False when nothing can."""
        for stream in self._random.sample(self._streams, len(self._streams)):
            if stream.queue and stream.queue[0][1]():
                stream.queue.popleft()
                return True
        return False
