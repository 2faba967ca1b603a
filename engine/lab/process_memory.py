"""Peak memory of this process, and returning what the allocator holds back."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import psutil


def reset_peak_rss() -> bool:
    """Starts a new peak from what is resident now. False where the system cannot (only Linux can)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_rss_bytes() -> int:
    """Highest resident memory of this process since start or the last `reset_peak_rss`."""
    if (peak := _status_bytes("VmHWM")) is not None:
        return peak
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def return_freed_memory() -> None:
    """Gives freed pages back to the system, so that a later memory limit meets what is really in use."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _status_bytes(name: str) -> int | None:
    """A size as Linux tells it of this process; None elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
