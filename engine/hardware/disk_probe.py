"""How fast a file's disk reads, past the page cache: in order, and in expert-sized pieces at random."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ALIGNMENT_BYTES = 4096
PROBE_FILE_BYTES = 64 << 20
_READ_ONLY = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # Windows would read text up to its end mark


@dataclass(frozen=True)
class DiskProbe:
    """Bytes per second by access pattern and number of concurrent readers.

    `direct` says whether the page cache was really by-passed; where it was not, `explanation` says what
    was done instead and the figures may be those of RAM.
    """

    direct: bool
    piece_bytes: int
    sequential_1_reader: float
    sequential_2_readers: float
    random_1_reader: float
    random_2_readers: float
    explanation: str

    @property
    def best_bytes_per_second(self) -> float:
        """The most this disk gave to anybody: what a lower bound on time must be computed with."""
        return max(self.sequential_1_reader, self.sequential_2_readers, self.random_1_reader, self.random_2_readers)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {**asdict(self), "best_bytes_per_second": self.best_bytes_per_second}


def probe_file(file: Path, piece_bytes: int = 4 << 20, seconds: float = 0.8) -> DiskProbe:
    """Read pieces of `file` for about `seconds` in all (four measurements).

    Raises OSError where the file cannot be read, ValueError where it is smaller than one disk block.
    """
    piece, offsets = _pieces(file, piece_bytes)
    direct = _supports_direct(file)
    shuffled = random.Random(0).sample(offsets, len(offsets))

    def speed(order: list[int], readers: int) -> float:
        return _read_speed(file, order, piece, readers, seconds / 4, direct)

    return DiskProbe(
        direct, piece, speed(offsets, 1), speed(offsets, 2), speed(shuffled, 1), speed(shuffled, 2), _explain(direct)
    )


def probe_folder(folder: Path, piece_bytes: int = 4 << 20) -> DiskProbe:
    """The same on a temporary file in `folder`, for when there is no model yet."""
    with temporary_file(folder) as file:
        return probe_file(file, piece_bytes)


@contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """A file in `folder` that is worth reading (64 MiB, on its disk), deleted when left. Raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".disk-probe-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            block = os.urandom(1 << 20)  # some drives and file systems compress, zeros would flatter them
            for _ in range(PROBE_FILE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        os.unlink(name)


class DiskReading:
    """Reads pieces of a file, one a step, going round the offsets. Use `with`."""

    def __init__(self, file: Path, offsets: list[int], piece_bytes: int, direct: bool) -> None:
        self._file = file
        self._offsets = itertools.cycle(offsets)
        self._piece_bytes = piece_bytes
        self._direct = direct

    def __enter__(self) -> DiskReading:
        self._descriptor = os.open(self._file, _READ_ONLY | (os.O_DIRECT if self._direct else 0))
        self._buffer = mmap.mmap(-1, self._piece_bytes)  # page-aligned, as O_DIRECT asks for
        return self

    def __exit__(self, *exception: object) -> None:
        self._buffer.close()
        os.close(self._descriptor)

    def step(self) -> int:
        """Reads one piece; its bytes. Raises OSError."""
        offset = next(self._offsets)
        if not self._direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, self._piece_bytes, os.POSIX_FADV_DONTNEED)
        return _read_piece(self._descriptor, self._buffer, offset)


def random_reading(file: Path, piece_bytes: int) -> DiskReading:
    """Pieces at random, as experts are read. Raises as `probe_file` does."""
    piece, offsets = _pieces(file, piece_bytes)
    return DiskReading(file, random.Random(1).sample(offsets, len(offsets)), piece, _supports_direct(file))


def _pieces(file: Path, piece_bytes: int) -> tuple[int, list[int]]:
    """The size that pieces really have, and where they begin."""
    size = file.stat().st_size
    piece = min(piece_bytes, size) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    if piece == 0:
        raise ValueError(f"{file} is smaller than {ALIGNMENT_BYTES} bytes: nothing to measure.")
    return piece, list(range(0, size - piece + 1, piece))


def _explain(direct: bool) -> str:
    if direct:
        return "Read past the page cache (O_DIRECT)."
    if hasattr(os, "posix_fadvise"):
        return "This file system has no O_DIRECT: pages were dropped before reading instead."
    return "This system keeps what was read in RAM: the figures may be those of RAM."


def _supports_direct(file: Path) -> bool:
    """Whether an aligned read with O_DIRECT works; tmpfs, some network disks and other systems refuse it."""
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        descriptor = os.open(file, _READ_ONLY | os.O_DIRECT)
    except OSError as problem:
        if problem.errno == errno.EINVAL:
            return False
        raise
    try:
        with mmap.mmap(-1, ALIGNMENT_BYTES) as buffer:
            os.preadv(descriptor, [buffer], 0)
        return True
    except OSError as problem:
        if problem.errno == errno.EINVAL:
            return False
        raise
    finally:
        os.close(descriptor)


def _read_speed(file: Path, offsets: list[int], piece: int, readers: int, seconds: float, direct: bool) -> float:
    """Bytes per second of `readers` threads that share the offsets, going round until time is up."""
    begin = time.perf_counter()
    deadline = begin + seconds
    shares = [DiskReading(file, offsets[reader::readers] or offsets, piece, direct) for reader in range(readers)]
    with ThreadPoolExecutor(readers, "disk-probe") as pool:
        reads = [pool.submit(_read_until, deadline, share) for share in shares]
        read_bytes = sum(read.result() for read in reads)
    return read_bytes / (time.perf_counter() - begin)


def _read_until(deadline: float, reading: DiskReading) -> int:
    total = 0
    with reading:
        while total == 0 or time.perf_counter() < deadline:
            total += reading.step()
    return total


def _read_piece(descriptor: int, buffer: mmap.mmap, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return len(os.read(descriptor, len(buffer)))
