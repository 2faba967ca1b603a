"""How fast a file's disk reads, past the page cache: in order, and in expert-sized pieces at random."""

from __future__ import annotations

import errno
import mmap
import os
import random
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ALIGNMENT_BYTES = 4096
PROBE_FILE_BYTES = 64 << 20


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
    size = file.stat().st_size
    piece = min(piece_bytes, size) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    if piece == 0:
        raise ValueError(f"{file} is smaller than {ALIGNMENT_BYTES} bytes: nothing to measure.")
    direct = _supports_direct(file)
    offsets = list(range(0, size - piece + 1, piece))
    shuffled = random.Random(0).sample(offsets, len(offsets))

    def speed(order: list[int], readers: int) -> float:
        return _read_speed(file, order, piece, readers, seconds / 4, direct)

    explanation = (
        "Read past the page cache (O_DIRECT)."
        if direct
        else "This file system has no O_DIRECT: pages were dropped before reading instead."
    )
    return DiskProbe(
        direct, piece, speed(offsets, 1), speed(offsets, 2), speed(shuffled, 1), speed(shuffled, 2), explanation
    )


def probe_folder(folder: Path, piece_bytes: int = 4 << 20) -> DiskProbe:
    """The same on a temporary file in `folder` (64 MiB, deleted again), for when there is no model yet."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".disk-probe-") as file:
        block = os.urandom(1 << 20)  # some drives and file systems compress, zeros would flatter them
        for _ in range(PROBE_FILE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return probe_file(Path(file.name), piece_bytes)


def _supports_direct(file: Path) -> bool:
    """Whether an aligned read with O_DIRECT works; tmpfs, some network disks and other systems refuse it."""
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
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
    shares = [_go_round(offsets[reader::readers] or offsets) for reader in range(readers)]
    with ThreadPoolExecutor(readers, "disk-probe") as pool:
        reads = [pool.submit(_read_until, deadline, file, share, piece, direct) for share in shares]
        read_bytes = sum(read.result() for read in reads)
    return read_bytes / (time.perf_counter() - begin)


def _go_round(offsets: list[int]) -> Iterator[int]:
    while True:
        yield from offsets


def _read_until(deadline: float, file: Path, offsets: Iterator[int], piece: int, direct: bool) -> int:
    total = 0
    descriptor = os.open(file, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        with mmap.mmap(-1, piece) as buffer:  # page-aligned, as O_DIRECT asks for
            while total == 0 or time.perf_counter() < deadline:
                offset = next(offsets)
                if not direct and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, offset, piece, os.POSIX_FADV_DONTNEED)
                total += _read_piece(descriptor, buffer, offset)
    finally:
        os.close(descriptor)
    return total


def _read_piece(descriptor: int, buffer: mmap.mmap, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return len(os.read(descriptor, len(buffer)))
