"""Anonymous mappings: private, in large pages where they fit, and nothing kept."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.anonymous_memory import LARGE_PAGE_BYTES, large_paged, mapping

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def smaps_of(address: int) -> tuple[str, dict[str, str]]:
    """Permissions and facts of the mapping that holds an address."""
    permissions, facts, found = "", {}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if "-" in name and not name.endswith(":"):
            first, last = (int(part, 16) for part in name.split("-"))
            found = first <= address < last
            permissions = rest[0] if found else permissions
        elif found:
            facts[name.rstrip(":")] = " ".join(rest)
    return permissions, facts


@pytest.mark.parametrize("nbytes", [1, 5000, LARGE_PAGE_BYTES, 2 * LARGE_PAGE_BYTES + 600_000])
def test_zeros_that_can_be_written_from_end_to_end(nbytes):
    array = large_paged(nbytes)
    assert array.shape == (nbytes,) and array.ctypes.data % mmap.PAGESIZE == 0
    assert not array[:: max(1, nbytes // 7)].any() and not array[-1]
    array[:] = 7
    assert (array == 7).all()


@linux
def test_private_to_the_process():
    for array in np.frombuffer(mapping(1 << 20), np.uint8), large_paged(3 * LARGE_PAGE_BYTES):
        assert smaps_of(array.ctypes.data)[0] == "rw-p"


@linux
def test_large_pages_are_asked_for_but_not_beyond_the_end():
    array = large_paged(2 * LARGE_PAGE_BYTES + 600_000)
    assert array.ctypes.data % LARGE_PAGE_BYTES == 0
    assert "hg" in smaps_of(array.ctypes.data)[1]["VmFlags"].split()
    assert "hg" not in smaps_of(array.ctypes.data + 2 * LARGE_PAGE_BYTES)[1]["VmFlags"].split()


@linux
def test_freed_memory_returns_at_once():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    nbytes = 32 * LARGE_PAGE_BYTES + 600_000
    array = large_paged(nbytes)
    array[:] = 1
    before = resident()
    del array
    assert before - resident() >= nbytes - LARGE_PAGE_BYTES
