"""RAM for the middle tier: page-locked pieces of bounded size, pageable where the driver refuses, and it says so.

A card copies from page-locked memory on its own; from pageable memory the driver copies first, at half the speed and
with the caller waiting. Drivers limit how much can be locked (Windows and WSL the most), so memory is locked piece by
piece, and after the first refusal nothing more is asked for.
"""

from __future__ import annotations

import mmap
from typing import Protocol

import numpy as np
import torch

from engine.hardware.memory_plan import format_bytes

PIECE_BYTES = 256 << 20


class PageLock(Protocol):
    """What a driver does with memory that its card shall read by itself."""

    def lock(self, address: int, nbytes: int) -> bool:
        """Page-locks the memory. False when the driver refuses."""

    def unlock(self, address: int) -> None:
        """Takes `lock` back."""


class HostMemory:
    """Places of `place_bytes` each (uint8 tensors), made in pieces of at most PIECE_BYTES (at least one place).

    Anonymous mappings rather than torch's pinned allocator, which rounds up to powers of two and keeps what is freed.
    """

    def __init__(self, place_bytes: int, page_lock: PageLock | None = None, piece_bytes: int = PIECE_BYTES) -> None:
        self._place_bytes = place_bytes
        self._places_per_piece = max(1, piece_bytes // place_bytes)
        self._page_lock = page_lock
        self._locking = page_lock is not None
        self._locked: list[int] = []
        self._pieces: list[np.ndarray] = []
        self.locked_bytes = 0
        self.pageable_bytes = 0

    def grow(self, places: int) -> list[torch.Tensor]:
        """One further piece, cut into at most `places` places. Raises OSError or MemoryError when RAM is used up."""
        count = min(places, self._places_per_piece)
        piece = np.frombuffer(mmap.mmap(-1, count * self._place_bytes), np.uint8)
        self._lock_pages(piece)
        self._pieces.append(piece)
        return list(torch.from_numpy(piece).split(self._place_bytes))

    def _lock_pages(self, piece: np.ndarray) -> None:
        address = piece.ctypes.data
        self._locking = self._locking and self._page_lock is not None and self._page_lock.lock(address, piece.nbytes)
        if self._locking:
            self._locked.append(address)
            self.locked_bytes += piece.nbytes
        else:
            self.pageable_bytes += piece.nbytes

    @property
    def problem(self) -> str | None:
        """In a sentence, when less is page-locked than was meant to be; None while all is well."""
        if self._page_lock is None or not self.pageable_bytes:
            return None
        return (
            f"The driver locked only {format_bytes(self.locked_bytes)} of RAM; {format_bytes(self.pageable_bytes)} of "
            "experts are copied to the card more slowly. A smaller share of the experts in RAM, or fewer other "
            "programs, may help; on Windows and WSL the limit is the system's."
        )

    def close(self) -> None:
        """Unlocks and frees everything; the places must not be used any more. Idempotent."""
        while self._locked:
            assert self._page_lock is not None
            self._page_lock.unlock(self._locked.pop())
        self._pieces.clear()
