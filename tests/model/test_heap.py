"""What the allocator hoards goes back to the system."""

from __future__ import annotations

import subprocess
import sys

from engine.model import heap

HOARDER = """
import psutil, torch
from engine.model.heap import HOARD_BYTES, return_hoard
kept, blocks = [], [torch.ones(30_000) for _ in range(2000)]
for number in range(0, 2000, 20):
    kept.append(blocks[number])  # what stays in between keeps the heap from shrinking by itself
blocks.clear()
before = psutil.Process().memory_info().rss
return_hoard()
print(before - psutil.Process().memory_info().rss, all(float(block.sum()) == 30_000 for block in kept))
"""


def test_free_pages_between_blocks_in_use_are_returned():
    if heap._ALLOCATOR is None:  # not glibc: nothing to return, and nothing happens
        heap.return_hoard()
        return
    out = subprocess.run([sys.executable, "-c", HOARDER], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) > heap.HOARD_BYTES and out[1] == "True"


def test_a_small_hoard_stays(monkeypatch):
    trimmed = []
    empty = heap._Mallinfo2(fordblks=heap.HOARD_BYTES)
    monkeypatch.setattr(heap, "_ALLOCATOR", (lambda: empty, trimmed.append))
    heap.return_hoard()
    assert not trimmed
