"""What a loaded model really takes, to be set beside its plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

from engine.errors import DriverFailed
from engine.hardware.memory_plan import format_bytes
from engine.hardware.vram_reading import VramReading

_SHOWN_STEP_BYTES = 10_000_000  # a line that changes with every page would never stay still
_STATUS = Path("/proc/self/status")


def file_bytes() -> int:
    """Of this process's memory, pages of files: libraries above all. 0 where the system does not tell (only Linux
    does).
    """
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:")), 0)


def own_bytes() -> int:
    """Resident memory of this process without pages of files, in bytes."""
    return int(psutil.Process().memory_info().rss) - file_bytes()


class HeldMemory:
    """Measures from its making on: make it before the model is loaded."""

    def __init__(self) -> None:
        self._before_bytes = own_bytes()

    def words(self, planned_bytes: int, read_vram: Callable[[], VramReading] | None = None) -> str:
        """Plan and measurement in a sentence; empty where a card's driver does not answer just now."""
        if read_vram is None:
            held, what = own_bytes() - self._before_bytes, "taken by this process since loading began"
        else:
            try:
                held, what = read_vram().ours_bytes, "taken on the card"
            except DriverFailed:
                return ""
        measured = max(round(held / _SHOWN_STEP_BYTES) * _SHOWN_STEP_BYTES, 0)
        return f"Planned: {format_bytes(planned_bytes)}; {what}: {format_bytes(measured)}."
