"""The survey of this very machine, and its parts on fixture files."""

from __future__ import annotations

import json
import os
import platform

import psutil
import pytest

from engine.hardware import machine
from engine.hardware.memory_cgroup import MemoryLimit


def test_the_survey_says_what_the_system_says():
    found = machine.survey_machine()
    assert 0 < found.ram_available_bytes <= found.ram_total_bytes <= psutil.virtual_memory().total
    assert 1 <= found.cpu_threads <= os.cpu_count()
    assert found.python == platform.python_version()
    assert found.cpu
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict() | {"gpus": list(found.to_dict()["gpus"])}


def test_versions_are_those_that_are_imported():
    import numpy

    versions = machine.library_versions()
    assert versions["numpy"] == numpy.__version__


def test_a_missing_library_is_said_so(monkeypatch):
    monkeypatch.setattr(machine, "LIBRARIES", ("numpy", "no-such-library"))
    assert machine.library_versions()["no-such-library"] == "not installed"


@pytest.mark.parametrize("room", [1 << 20, 1 << 50])
def test_a_containers_limit_counts_where_it_is_tighter(monkeypatch, tmp_path, room):
    monkeypatch.setattr(machine, "memory_limit", lambda: MemoryLimit(room, room // 2, tmp_path))
    found = machine.survey_machine()
    total = psutil.virtual_memory().total
    assert found.ram_total_bytes == min(room, total)
    assert found.ram_available_bytes <= room // 2
    assert (found.ram_limited_by == str(tmp_path)) == (room < total)


def test_the_processors_name(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3.0 GHz\nflags\t: avx2\n")
    assert machine.cpu_name(file) == "Some CPU @ 3.0 GHz"
    assert machine.cpu_name(tmp_path / "absent")
