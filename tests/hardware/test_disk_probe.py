"""The disk probe reads what is in the file, past the page cache where it can."""

from __future__ import annotations

import mmap
import os

import pytest

from engine.hardware import disk_probe
from engine.hardware.disk_probe import probe_file, probe_folder


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(3 * 65536 + 1000))
    return path


def test_four_speeds(file):
    probe = probe_file(file, piece_bytes=65536, seconds=0.04)
    speeds = [
        probe.sequential_1_reader,
        probe.sequential_2_readers,
        probe.random_1_reader,
        probe.random_2_readers,
    ]
    assert all(speed > 0 for speed in speeds)
    assert probe.best_bytes_per_second == max(speeds)
    assert probe.piece_bytes == 65536
    assert probe.to_dict()["best_bytes_per_second"] == max(speeds)


def test_a_piece_is_the_files_own_bytes(file):
    descriptor = os.open(file, os.O_RDONLY)
    try:
        with mmap.mmap(-1, 65536) as buffer:
            assert disk_probe._read_piece(descriptor, buffer, 65536) == 65536
            assert bytes(buffer) == file.read_bytes()[65536:131072]
    finally:
        os.close(descriptor)


def test_without_direct_reads_it_says_so(file, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    probe = probe_file(file, piece_bytes=65536, seconds=0.04)
    assert not probe.direct
    assert "no O_DIRECT" in probe.explanation
    assert probe.best_bytes_per_second > 0


def test_pieces_larger_than_the_file_become_smaller(file):
    assert probe_file(file, piece_bytes=1 << 30, seconds=0.04).piece_bytes == 3 * 65536


def test_a_file_smaller_than_a_block_is_refused(tmp_path):
    path = tmp_path / "tiny"
    path.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="smaller than 4096"):
        probe_file(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        probe_file(tmp_path / "absent")


def test_a_failing_read_is_not_taken_for_a_speed(file, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk_probe, "_read_piece", fail)
    with pytest.raises(OSError, match="Input/output error"):
        probe_file(file, piece_bytes=65536)


def test_a_folder_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_probe, "PROBE_FILE_BYTES", 1 << 20)
    assert probe_folder(tmp_path, piece_bytes=65536).best_bytes_per_second > 0
    assert list(tmp_path.iterdir()) == []
