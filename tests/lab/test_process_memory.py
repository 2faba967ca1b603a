"""Peak memory follows what a process really held; dropping pages keeps contents."""

from __future__ import annotations

import os

from engine.lab.page_cache import drop_pages, weight_files
from engine.lab.process_memory import peak_rss_bytes, reset_peak_rss, return_freed_memory

MIB = 1 << 20


def test_the_peak_remembers_and_forgets():
    ballast = bytearray(os.urandom(96 * MIB))
    peak = peak_rss_bytes()
    assert peak > len(ballast)
    del ballast
    return_freed_memory()
    assert peak_rss_bytes() >= peak - MIB  # the kernel sums its counters lazily
    if reset_peak_rss():
        assert peak_rss_bytes() < peak - 48 * MIB


def test_dropped_pages_are_read_again(tmp_path):
    (tmp_path / "part").mkdir()
    file = tmp_path / "part" / "model.safetensors"
    content = os.urandom(100_000)
    file.write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    assert weight_files(tmp_path) == [file]
    drop_pages([file])
    assert file.read_bytes() == content
