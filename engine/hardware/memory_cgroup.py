"""How much memory this process may use where a control group (container, service, job) limits it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

UNLIMITED_BYTES = 1 << 60  # v1 writes "no limit" as a number near 2**63


@dataclass(frozen=True)
class GroupFiles:
    """The files of one control group version that hold its limit and its use."""

    limit: str
    usage: str
    peak: str


V1 = GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.max_usage_in_bytes")
V2 = GroupFiles("memory.max", "memory.current", "memory.peak")


@dataclass(frozen=True)
class MemoryGroup:
    """The memory control group this process is in: its folder, and the mount point its ancestors end at."""

    folder: Path
    mount: Path
    files: GroupFiles

    def ancestry(self) -> list[Path]:
        """Folders whose limits all apply to this process, its own first."""
        folders = [self.folder, *self.folder.parents]
        return folders[: folders.index(self.mount) + 1]


@dataclass(frozen=True)
class MemoryLimit:
    """The tightest limit on this process, in bytes; `available_bytes` counts page cache as free."""

    limit_bytes: int
    available_bytes: int
    folder: Path


def find_memory_group(proc: Path = Path("/proc"), sysfs: Path = Path("/sys/fs/cgroup")) -> MemoryGroup | None:
    """The memory group of this process, version 1 or 2, or None where the system has none."""
    paths = _own_paths(proc / "self" / "cgroup")
    candidates = [("memory", sysfs / "memory", V1), ("", sysfs, V2), ("", sysfs / "unified", V2)]
    for controller, mount, files in candidates:
        if controller not in paths or not (mount / "cgroup.procs").exists():
            continue
        # A container sees its host's path here but only its own part of the tree below the mount point.
        folder = mount / paths[controller].lstrip("/")
        return MemoryGroup(folder if folder.is_dir() else mount, mount, files)
    return None


def memory_limit(proc: Path = Path("/proc"), sysfs: Path = Path("/sys/fs/cgroup")) -> MemoryLimit | None:
    """The tightest memory limit on this process, or None where nothing limits it."""
    group = find_memory_group(proc, sysfs)
    if group is None:
        return None
    limits = [limit for folder in group.ancestry() if (limit := _limit_of(folder, group.files))]
    if not limits:
        return None
    tightest = min(limits, key=lambda limit: limit.limit_bytes)
    available = min(limit.available_bytes for limit in limits)
    return MemoryLimit(tightest.limit_bytes, available, tightest.folder)


def _limit_of(folder: Path, files: GroupFiles) -> MemoryLimit | None:
    limit = _number(folder / files.limit)
    if limit is None or limit >= UNLIMITED_BYTES:
        return None
    used = (_number(folder / files.usage) or 0) - _page_cache_bytes(folder / "memory.stat")
    return MemoryLimit(limit, max(0, limit - max(0, used)), folder)


def _own_paths(file: Path) -> dict[str, str]:
    """Controller name -> path of this process in it; version 2 has the empty name."""
    paths: dict[str, str] = {}
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return paths
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _page_cache_bytes(stat: Path) -> int:
    """Cached file pages of the group: the kernel gives them up before it refuses memory."""
    try:
        counters = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    prefix = "total_" if "total_inactive_file" in counters else ""  # v1 counts sub-groups apart
    return sum(int(counters.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))


def _number(file: Path) -> int | None:
    """The number in a control file; None for a missing file and for "max"."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
