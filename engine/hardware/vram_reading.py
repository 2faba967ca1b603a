"""How full a card is now, and how much of it is ours: one cheap question to the driver, asked again and again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pynvml as nvml

from engine.errors import DriverFailed
from engine.hardware.gpus import under_wsl
from engine.hardware.nvml import failure_in_words, read_processes


@dataclass(frozen=True)
class VramReading:
    """Bytes of one card (or part of a split one) at one moment.

    `own_bytes` is what the driver charges to this process, None where it does not tell (Windows, WSL, containers);
    `allocated_bytes` is what this process's allocator holds, wherever that lies. `can_spill`: this system moves
    VRAM to RAM instead of refusing it.
    """

    total_bytes: int
    free_bytes: int
    own_bytes: int | None
    allocated_bytes: int
    can_spill: bool = False

    @property
    def used_bytes(self) -> int:
        return self.total_bytes - self.free_bytes

    @property
    def ours_bytes(self) -> int:
        """The best that is known of our own use."""
        return self.allocated_bytes if self.own_bytes is None else self.own_bytes

    @property
    def others_bytes(self) -> int:
        """What is used and not ours: other programs and the driver itself; where the driver does not tell our use,
        our CUDA context (some hundred MB, constant) counts as theirs."""
        return max(0, self.used_bytes - self.ours_bytes)

    @property
    def within_reach_bytes(self) -> int:
        """What we could hold if nobody else took more: free, and what our allocator holds already."""
        return self.free_bytes + min(self.allocated_bytes, self.used_bytes)


class VramReader:
    """Reads one card by its UUID; keeps the driver's library open between readings. Close it, or use `with`.

    `allocated_bytes` tells what this process's allocator holds on the card (`torch.cuda.memory_reserved`).
    """

    def __init__(self, uuid: str, allocated_bytes: Callable[[], int], can_spill: bool | None = None) -> None:
        self._uuid = uuid
        self._allocated_bytes = allocated_bytes
        self._can_spill = moves_vram_to_ram() if can_spill is None else can_spill
        self._handle: Any = None
        self._lock = threading.Lock()

    def __call__(self) -> VramReading:
        """One reading, a few calls to the driver. Raises DriverFailed; the next call opens the driver again.

        May be called from several threads.
        """
        try:
            with self._lock:
                if self._handle is None:
                    self._open()
                return self._read()
        except nvml.NVMLError as problem:
            self.close()
            raise DriverFailed(
                f"{failure_in_words(problem)}: the card's free memory is not known any more.",
                "The cache keeps its size; if answers stop too, restart the program or the machine.",
            ) from problem

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self._handle is not None:
                self._handle = None
                with suppress(nvml.NVMLError):  # a driver that broke meanwhile cannot be left in order either
                    nvml.nvmlShutdown()

    def __enter__(self) -> VramReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        nvml.nvmlInit()
        try:
            self._handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
        except nvml.NVMLError:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()
            raise

    def _read(self) -> VramReading:
        before = self._allocated_bytes()
        memory = nvml.nvmlDeviceGetMemoryInfo(self._handle)
        allocated = self._allocated_bytes()
        if allocated != before:  # we grew or shrank meanwhile: that must not look like another program
            memory = nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return VramReading(
            total_bytes=int(memory.total),
            free_bytes=int(memory.free),
            own_bytes=self._own_bytes(allocated),
            allocated_bytes=allocated,
            can_spill=self._can_spill,
        )

    def _own_bytes(self, allocated: int) -> int | None:
        own = [process for process in read_processes(self._handle, names=False) or () if process.own]
        if own:
            return own[0].used_bytes
        return None if allocated else 0  # in a container the list has the host's numbers, and we are not found


def moves_vram_to_ram() -> bool:
    """Whether this system's driver moves VRAM to RAM when a card is over-full (Windows, also below WSL)."""
    return sys.platform == "win32" or under_wsl()
