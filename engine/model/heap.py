"""Giving back what the C allocator hoards while a prompt is read.

glibc does not re-use a freed aligned block for the next one of the same size, so every layer of a pass leaves its
temporary tensors behind: hundreds of megabytes by the last one. Giving each of them a mapping of its own would cost
a third of the speed; returning free pages now and then costs next to nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

HOARD_BYTES = 48 << 20  # free in the allocator's hands: enough to serve a layer, and within the planned workspace


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def _allocator() -> tuple[Callable[[], Any], Callable[[int], int]] | None:
    """`mallinfo2` and `malloc_trim` where the C library has both (glibc 2.33 or newer)."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    try:
        info, trim = library.mallinfo2, library.malloc_trim
    except AttributeError:
        return None
    info.restype = _Mallinfo2
    return info, trim


_ALLOCATOR = _allocator()


def return_hoard() -> None:
    """Returns free pages to the system once there are more than HOARD_BYTES of them. Nothing without glibc."""
    if _ALLOCATOR is None:
        return
    info, trim = _ALLOCATOR
    if info().fordblks > HOARD_BYTES:
        trim(0)
