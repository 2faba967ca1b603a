"""A memory limit around another process that counts its page cache too: a control group of its own."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from engine.errors import NotEnoughMemory
from engine.hardware.memory_cgroup import V1, V2, MemoryGroup, find_memory_group

EMPTY_TIMEOUT_SECONDS = 10.0


class MemoryCage:
    """Made by `create`, which answers None where this user may not make control groups."""

    def __init__(self, group: MemoryGroup) -> None:
        self._folder = group.folder
        self._files = group.files

    @classmethod
    def create(cls, name: str, parent: MemoryGroup | None = None) -> MemoryCage | None:
        """A new group beside or below this process's own. Close it after the process in it has ended."""
        parent = parent or find_memory_group()
        if parent is None:
            return None
        # Version 2 allows no groups below one that holds processes, so the new one goes beside it.
        above = parent.folder.parent if parent.files is V2 and parent.folder != parent.mount else parent.folder
        folder = above / f"expertflow-{os.getpid()}-{name}"
        try:
            folder.mkdir()
        except OSError:
            return None
        cage = cls(MemoryGroup(folder, parent.mount, parent.files))
        if not cage._is_usable():
            cage.close()
            return None
        return cage

    def add(self, process_id: int) -> None:
        """From now on the process's memory and the files it reads count here. Raises OSError if not allowed."""
        (self._folder / "cgroup.procs").write_text(str(process_id))

    def limit(self, limit_bytes: int) -> None:
        """At most so many bytes, page cache included; what is cached above that is dropped at once.

        Raises NotEnoughMemory when the process already holds more than that.
        """
        self._set_limit(limit_bytes)
        self._forbid_swap(limit_bytes)

    def peak_bytes(self) -> int | None:
        """The most the group has ever held, page cache included; None where the system does not count it."""
        return _read_number(self._folder / self._files.peak)

    def reset_peak(self) -> None:
        """Starts a new peak where the system allows it."""
        try:
            (self._folder / self._files.peak).write_text("0")
        except OSError:
            return  # version 2 before Linux 6.12 counts since the beginning only

    def close(self) -> None:
        """Removes the group. Waits for the kernel to let go of a process that has just ended."""
        deadline = time.monotonic() + EMPTY_TIMEOUT_SECONDS
        while self._folder.exists():
            try:
                self._folder.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _is_usable(self) -> bool:
        """Version 2 hands out the memory controller only where the parent group passes it on."""
        return os.access(self._folder / self._files.limit, os.W_OK) and os.access(
            self._folder / "cgroup.procs", os.W_OK
        )

    def _set_limit(self, limit_bytes: int) -> None:
        try:
            (self._folder / self._files.limit).write_text(str(limit_bytes))
        except OSError as problem:
            if problem.errno not in (errno.EBUSY, errno.ENOMEM):
                raise
            held = _read_number(self._folder / self._files.usage) or 0
            raise NotEnoughMemory(
                f"The process already holds {held / 2**30:.2f} GiB, more than the limit of "
                f"{limit_bytes / 2**30:.2f} GiB.",
                "Give a higher --memory-limit.",
            ) from problem

    def _forbid_swap(self, limit_bytes: int) -> None:
        name, value = ("memory.memsw.limit_in_bytes", limit_bytes) if self._files is V1 else ("memory.swap.max", 0)
        file = self._folder / name
        if file.exists():  # absent where the kernel does not account for swap
            file.write_text(str(value))


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
