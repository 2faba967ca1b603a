"""Reading at a place of an open file into memory that is there, on every system."""

from __future__ import annotations

import os
import threading
from pathlib import Path

# Windows would translate line ends and stop at an end mark; elsewhere programs started later would inherit it.
_READ_ONLY = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def open_to_read(path: Path, flags: int = 0) -> int:
    """A descriptor for `read_at`, to be closed by `os.close`. Raises OSError."""
    return os.open(path, _READ_ONLY | flags)


if hasattr(os, "preadv"):

    def read_at(file: int, target: memoryview, offset: int) -> int:
        """Reads at most `len(target)` bytes from `offset` on; 0 at the end of the file. From several threads, too."""
        return os.preadv(file, [target], offset)

else:  # Windows has no positioned read into a buffer: one lock keeps seek and read together
    _seek_lock = threading.Lock()

    def read_at(file: int, target: memoryview, offset: int) -> int:
        """Reads at most `len(target)` bytes from `offset` on; 0 at the end of the file. From several threads, too."""
        with _seek_lock:
            os.lseek(file, offset, os.SEEK_SET)
            data = os.read(file, len(target))
        target[: len(data)] = data
        return len(data)
