"""What `TorchCard` uses of `torch.cuda`, done at once on tensors of the CPU, with a note of every call.

Notes are (what, stream, ...) in the order of the calls; streams and events are numbered. Signatures are those of
torch.cuda, so that a call with other arguments fails here as it would there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class RecordingTorchCuda:
    """One card. `lockable_bytes`: what the driver page-locks; a refusal stays the runtime's last error until a
    kernel's launch is checked.
    """

    def __init__(self, lockable_bytes: int = 1 << 40) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self.lockable_bytes = lockable_bytes
        self.locked: dict[int, int] = {}
        self.devices_entered: list[torch.device] = []
        self._streams = 0
        self._events = 0
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        recorder = self

        class Stream:
            def __init__(self, device: torch.device | None = None, priority: int = 0) -> None:
                recorder._streams += 1
                self.number, self.priority, self.device = recorder._streams, priority, device

            def wait_event(self, event: Event) -> None:
                recorder.note("wait", self.number, event.number)

        class Event:
            def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
                recorder._events += 1
                self.number, self.blocking, self.recorded = recorder._events, blocking, False

            def record(self, stream: Stream | None = None) -> None:
                assert stream is not None, "on which stream?"
                self.recorded = True
                recorder.note("record", stream.number, self.number)

            def synchronize(self) -> None:
                assert self.recorded
                recorder.note("synchronize", 0, self.number)

        self.Stream, self.Event = Stream, Event
        self._default = Stream()

    def note(self, *what: Any) -> None:
        with self._lock:
            self.notes.append((*what, threading.current_thread().name))

    def current_stream(self, device: torch.device | None = None) -> Any:
        return getattr(self._of_thread, "stream", self._default)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before = self.current_stream()
        self._of_thread.stream = stream
        self.note("enter", stream.number)
        try:
            yield
        finally:
            self.note("leave", stream.number)
            self._of_thread.stream = before

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.devices_entered.append(device)
        yield

    def empty_cache(self) -> None:
        self.note("empty_cache", 0)

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 8 << 30, 12 << 30

    def memory_reserved(self, device: torch.device) -> int:
        return 3 << 30

    def memory_allocated(self, device: torch.device) -> int:
        return 2 << 30

    def cudart(self) -> RecordingTorchCuda:
        return self

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        assert flags == 1 and address % 4096 == 0
        if sum(self.locked.values()) + nbytes > self.lockable_bytes:
            self.note("refused", 0)
            return 2
        self.locked[address] = nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0
