"""Memory in mappings of its own: given by the system when first written, and returned to it at once when freed.

Private to this process where systems know the difference: Linux keeps shared memory as a file, whose pages take
longer to make and are never large. Weights that stream through the processor want large pages: small ones end the
runs that it fetches ahead, and more of them than it remembers have to be looked up.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

LARGE_PAGE_BYTES = 2 << 20


def mapping(nbytes: int) -> mmap.mmap:
    """`nbytes` of zeros, page-aligned and writable; pages never touched cost nothing. Freed with its last view."""
    return mmap.mmap(-1, nbytes, **_private())


def large_paged(nbytes: int) -> np.ndarray:
    """The same as uint8 [nbytes], in large pages where the system has them: touching one costs all of it.

    What does not fill a large page lies in small ones, so that nothing is taken beyond the array's end.
    """
    if nbytes < LARGE_PAGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(mapping(nbytes), np.uint8)
    memory = mapping(nbytes + LARGE_PAGE_BYTES)  # addresses only, to begin where a large page can
    array = np.frombuffer(memory, np.uint8)
    begin = -array.ctypes.data % LARGE_PAGE_BYTES
    try:
        memory.madvise(mmap.MADV_HUGEPAGE, begin, nbytes // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES)
    except OSError:
        """A kernel without large pages: small ones do."""
    return array[begin : begin + nbytes]


def _private() -> dict[str, Any]:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return {}  # Windows
    return {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
