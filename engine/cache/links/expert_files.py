"""Reads pieces of experts from the checkpoint's own files, through the page cache or past it (`O_DIRECT`)."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import numpy as np

from engine.checkpoint.expert_index import ByteRange, ExpertIndex
from engine.checkpoint.expert_key import ExpertKey
from engine.checkpoint.positioned_read import open_to_read, read_at
from engine.errors import CheckpointCorrupt, CheckpointUnreadable

_SECTOR_BYTES = 4096
O_DIRECT = getattr(os, "O_DIRECT", 0)


class ExpertFiles:
    """Open files of a checkpoint. `read` may be called from several threads."""

    def __init__(self, index: ExpertIndex, direct: bool) -> None:
        self._index = index
        self.direct = direct and bool(O_DIRECT) and _supports_direct(index.files[0])
        self._files = [_open(path, O_DIRECT if self.direct else 0) for path in index.files]
        self._bounce = threading.local()
        self._ranges: dict[ExpertKey, tuple[ByteRange, ...]] = {}

    def transfer_bytes(self, key: ExpertKey) -> int:
        return sum(part.nbytes for part in self._ranges_of(key))

    def read(self, key: ExpertKey, start: int, stop: int, slot: np.ndarray) -> None:
        """Puts bytes [start, stop) of the expert's concatenated ranges where they belong in `slot`.

        Raises OSError as the system gives it, CheckpointCorrupt when a file has become shorter.
        """
        position = 0
        for part in self._ranges_of(key):
            begin, end = max(start - position, 0), min(stop - position, part.nbytes)
            if begin < end:
                self._read_range(part, begin, end, slot)
            position += part.nbytes

    def close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files = []

    def _ranges_of(self, key: ExpertKey) -> tuple[ByteRange, ...]:
        ranges = self._ranges.get(key)
        if ranges is None:
            ranges = self._ranges[key] = self._index.ranges(key)
        return ranges

    def _read_range(self, part: ByteRange, begin: int, end: int, slot: np.ndarray) -> None:
        offset = part.offset + begin
        target = slot[part.slot_offset + begin : part.slot_offset + end]
        if not self.direct or _aligned(offset, target):
            self._read_into(part.file, offset, target)
            return
        first = offset - offset % _SECTOR_BYTES
        needed = offset + len(target) - first
        bounce = self._bounce_buffer(-(-needed // _SECTOR_BYTES) * _SECTOR_BYTES)
        self._read_into(part.file, first, bounce, needed)
        target[:] = bounce[offset - first : needed]

    def _read_into(self, file: int, offset: int, target: np.ndarray, needed: int | None = None) -> None:
        """Fills `target`, or at least its first `needed` bytes where the file ends."""
        needed = len(target) if needed is None else needed
        done = 0
        while done < needed:
            count = read_at(self._files[file], target.data[done:], offset + done)
            if count == 0:
                path = self._index.files[file]
                raise CheckpointCorrupt(
                    f"{path} ended {needed - done} bytes early while it was being read.",
                    "The file was cut short or replaced: download the model again.",
                )
            done += count

    def _bounce_buffer(self, nbytes: int) -> np.ndarray:
        """A page-aligned buffer of this thread, kept between reads."""
        buffer = getattr(self._bounce, "buffer", None)
        if buffer is None or len(buffer) < nbytes:
            buffer = self._bounce.buffer = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
        return buffer[:nbytes]


def _aligned(offset: int, target: np.ndarray) -> bool:
    return (offset | len(target) | target.ctypes.data) % _SECTOR_BYTES == 0


def _open(path: Path, flags: int) -> int:
    try:
        return open_to_read(path, flags)
    except OSError as error:
        raise CheckpointUnreadable(
            f"{path} cannot be opened: {error.strerror}.",
            "Check that the file exists and that you may read it.",
        ) from error


def _supports_direct(path: Path) -> bool:
    """Some file systems (tmpfs, network shares) refuse O_DIRECT."""
    try:
        os.close(open_to_read(path, O_DIRECT))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise CheckpointUnreadable(
            f"{path} cannot be opened: {error.strerror}.",
            "Check that the file exists and that you may read it.",
        ) from error
    return True
