"""Limits of control groups, version 1 and 2, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.hardware.memory_cgroup import V1, V2, find_memory_group, memory_limit

GIB = 1 << 30


class System:
    """A /proc and a /sys/fs/cgroup made of ordinary files."""

    def __init__(self, root: Path) -> None:
        self.proc, self.sysfs = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.sysfs.mkdir()

    def own_groups(self, text: str) -> None:
        (self.proc / "self" / "cgroup").write_text(text)

    def group(self, path: str, **files: object) -> Path:
        folder = self.sysfs / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").write_text("")
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(f"{content}\n")
        return folder

    def limit(self):
        return memory_limit(self.proc, self.sysfs)


@pytest.fixture
def system(tmp_path):
    return System(tmp_path)


def test_version_2_counts_page_cache_as_free(system):
    system.own_groups("0::/app.slice/us\n")
    system.group("")
    system.group("app.slice", memory__max="max", memory__current=9 * GIB)
    stat = f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file {GIB}"
    folder = system.group("app.slice/us", memory__max=8 * GIB, memory__current=5 * GIB, memory__stat=stat)
    limit = system.limit()
    assert (limit.limit_bytes, limit.available_bytes, limit.folder) == (8 * GIB, 6 * GIB, folder)


def test_the_tightest_group_above_us_decides_and_the_fullest_is_counted(system):
    system.own_groups("0::/outer/inner\n")
    system.group("")
    outer = system.group("outer", memory__max=4 * GIB, memory__current=3 * GIB, memory__stat="inactive_file 0")
    system.group("outer/inner", memory__max=6 * GIB, memory__current=GIB, memory__stat="inactive_file 0")
    limit = system.limit()
    assert (limit.limit_bytes, limit.available_bytes, limit.folder) == (4 * GIB, GIB, outer)


def test_version_1_uses_the_hierarchical_counters(system):
    system.own_groups("4:memory:/job\n0::/\n")
    unlimited = 9223372036854771712
    system.group("memory", memory__limit_in_bytes=unlimited, memory__usage_in_bytes=GIB)
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file 0"
    system.group("memory/job", memory__limit_in_bytes=3 * GIB, memory__usage_in_bytes=2 * GIB, memory__stat=stat)
    limit = system.limit()
    assert (limit.limit_bytes, limit.available_bytes) == (3 * GIB, 2 * GIB)
    assert find_memory_group(system.proc, system.sysfs).files is V1


def test_a_container_sees_its_hosts_path_and_its_own_part_of_the_tree(system):
    system.own_groups("0::/docker/0123abc\n")
    system.group("", memory__max=2 * GIB, memory__current=3 * GIB, memory__stat="inactive_file 0")
    limit = system.limit()
    assert (limit.limit_bytes, limit.available_bytes) == (2 * GIB, 0)


def test_an_unmounted_version_1_controller_is_not_believed(system):
    system.own_groups("4:memory:/job\n0::/\n")
    system.group("", memory__max=GIB, memory__current=0)
    assert find_memory_group(system.proc, system.sysfs).files is V2


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_no_limit(system, limit):
    system.own_groups("0::/us\n")
    system.group("")
    system.group("us", memory__max=limit, memory__current=GIB)
    assert system.limit() is None


def test_a_system_without_control_groups(system):
    assert system.limit() is None
    assert find_memory_group(system.proc, system.sysfs) is None
