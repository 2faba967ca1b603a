"""How much RAM is free for this process now."""

from __future__ import annotations

import psutil

from engine.hardware.memory_cgroup import memory_limit


def available_ram_bytes() -> int:
    """Free RAM, counting page cache as free, within the limit of a container or service."""
    available = int(psutil.virtual_memory().available)
    limit = memory_limit()
    return min(available, limit.available_bytes) if limit else available
