"""Contenders in processes of their own: replies, errors, sudden ends, memory limits."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from engine.errors import NotEnoughMemory
from engine.hardware.memory_cgroup import V1, V2, MemoryGroup, find_memory_group
from engine.lab.contender_process import ContenderFailed, ContenderProcess
from engine.lab.memory_cage import MemoryCage

FAKE = "tests.lab.fake_contender"
MIB = 1 << 20


def test_replies_come_clean_whatever_is_printed():
    with ContenderProcess(FAKE, threads=3) as contender:
        facts = contender.load(path="x")
        assert facts["threads"] == 3
        assert facts["peak_rss_bytes"] > MIB
        assert contender.answer([7, 8, 9], 2)["ids"] == [7, 8]
        process = psutil.Process(contender._process.pid)
    assert not process.is_running()


def test_errors_arrive_with_their_words_and_the_contender_goes_on():
    with ContenderProcess(FAKE, threads=1) as contender:
        with pytest.raises(ContenderFailed, match="It has no experts") as caught:
            contender.load(path="dense")
        assert caught.value.remedy == "Choose another."
        contender.load(path="x")
        with pytest.raises(ContenderFailed, match="ZeroDivisionError: nothing to divide"):
            contender.answer([1], 0)
        assert contender.answer([1], 1)["ids"] == [1]


def test_a_contender_that_dies_is_reported_with_its_last_words():
    with ContenderProcess(FAKE, threads=1) as contender:
        with pytest.raises(ContenderFailed, match="(?s)exit code 3.*last words"):
            contender.load(path="exit")
        with pytest.raises(ContenderFailed, match="exit code 3"):
            contender.answer([1], 1)


def test_closing_twice_is_harmless():
    contender = ContenderProcess(FAKE, threads=1)
    contender.close()
    contender.close()


def test_a_cage_limits_and_counts_where_the_system_allows_one():
    cage = MemoryCage.create("test")
    group = find_memory_group()
    if cage is None:
        assert group is None or not _may_make_groups(group)
        return
    with ContenderProcess(FAKE, 1, cage) as contender:
        contender.load(path="x", ballast_bytes=64 * MIB)
        assert cage.peak_bytes() >= 64 * MIB
        with pytest.raises(NotEnoughMemory, match="already holds"):
            cage.limit(16 * MIB)
        cage.limit(256 * MIB)
        assert contender.answer([1], 1)["ids"] == [1]
        folder = cage._folder
        assert folder.exists()
    assert not folder.exists()


def _may_make_groups(group: MemoryGroup) -> bool:
    probe = group.folder / "expertflow-permission-test"
    try:
        probe.mkdir()
    except OSError:
        return False
    usable = (probe / group.files.limit).exists()
    probe.rmdir()
    return usable


@pytest.mark.parametrize("files", [V1, V2])
def test_a_folder_that_is_no_control_group_is_not_used(tmp_path: Path, files):
    folder = tmp_path / "mount" / "us"
    folder.mkdir(parents=True)
    assert MemoryCage.create("test", MemoryGroup(folder, tmp_path / "mount", files)) is None
    assert [path.name for path in tmp_path.rglob("*")] == ["mount", "us"]
