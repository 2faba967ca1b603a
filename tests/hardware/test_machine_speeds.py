"""Figures measured here, kept for the next start, and measured again when they can no longer be trusted."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

from engine.hardware import disk_probe, machine_speeds, speed, speed_cache
from engine.hardware.device import ChosenDevice
from engine.hardware.expert_probe import ExpertShape
from engine.hardware.gpu import Gpu
from engine.hardware.gpus import GpuSurvey
from engine.hardware.machine import survey_machine
from engine.hardware.machine_speeds import MachineSpeeds, measure_speeds
from engine.hardware.speed import Speed

CPU = ChosenDevice("cpu", None, "")
CARD = ChosenDevice("cuda", 0, "", name="RTX 4060")
SHAPE = ExpertShape(64, 32, torch.bfloat16)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed, "WORKING_SET_BYTES", 1 << 16)
    monkeypatch.setattr(disk_probe, "PROBE_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(machine_speeds.psutil, "cpu_percent", lambda interval: 3.0)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 18))
    return path


def test_everything_is_measured_on_the_processor(small, file):
    told = []
    speeds = measure_speeds(CPU, SHAPE, file, lambda *report: told.append(report), seconds_each=0.01)
    for measured in (speeds.copy, speeds.expert, speeds.disk_reader):
        assert measured.alone > 0 and measured.together > 0
    assert speeds.copy_pageable is None
    assert speeds.expert_bytes == SHAPE.nbytes
    assert speeds.expert_seconds == pytest.approx(SHAPE.nbytes / speeds.expert.alone)
    assert speeds.disk.piece_bytes == 12288
    assert speeds.notes == ()
    assert told[-1] == ("Measuring all of it at the same time", 4, 5)
    assert MachineSpeeds.from_dict(json.loads(json.dumps(speeds.to_dict()))) == speeds


def test_a_folder_is_left_as_it_was(small, tmp_path):
    assert measure_speeds(CPU, SHAPE, tmp_path, seconds_each=0.01).disk is not None
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_read_is_said(small, tmp_path):
    speeds = measure_speeds(CPU, SHAPE, tmp_path / "absent", seconds_each=0.01)
    assert (speeds.disk, speeds.disk_reader) == (None, None)
    assert "disk's speed could not be measured" in speeds.notes[0]
    assert MachineSpeeds.from_dict(speeds.to_dict()) == speeds


def test_a_busy_machine_is_said(small, tmp_path, monkeypatch):
    monkeypatch.setattr(machine_speeds.psutil, "cpu_percent", lambda interval: 80.0)
    speeds = measure_speeds(CPU, SHAPE, tmp_path, seconds_each=0.01)
    assert "busy (80%)" in speeds.notes[0]


class FakeCopy:
    """A card's copy that takes no card; page-locked memory is refused where `refused`."""

    refused = False

    def __init__(self, piece_bytes: int, index: int, page_locked: bool) -> None:
        if page_locked and self.refused:
            raise RuntimeError("CUDA error: out of memory\nmore words")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def step(self) -> int:
        return 1 << 20


@pytest.mark.parametrize("refused", [False, True])
def test_a_card_copies_from_both_kinds_of_ram(small, file, monkeypatch, refused):
    monkeypatch.setattr(machine_speeds, "CopyToCard", type("Copy", (FakeCopy,), {"refused": refused}))
    speeds = measure_speeds(CARD, SHAPE, file, seconds_each=0.01)
    assert speeds.device == "cuda:0"
    assert (speeds.copy == speeds.copy_pageable) == refused
    assert [note for note in speeds.notes if "no page-locked RAM (CUDA error: out of memory)" in note] == list(
        speeds.notes
    )
    assert bool(speeds.notes) == refused


FIGURES = MachineSpeeds(
    "cpu", Speed(9e9, 5e9), None, Speed(2e10, 1e10), 12288, "bfloat16", "PyTorch", None, None, "now"
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder of one's own, and a count of measurements, which give invented figures."""
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path / "home"))
    measured = []

    def measure(device, shape, place, on_progress=None):
        measured.append((device, shape))
        return replace(FIGURES, device=device.torch_name)

    monkeypatch.setattr(speed_cache, "measure_speeds", measure)
    return measured


@pytest.fixture(scope="module")
def machine():
    return survey_machine()


def test_a_second_start_measures_nothing(home, machine, file):
    assert speed_cache.recall_speeds(machine, CPU, SHAPE, file) is None
    first = speed_cache.machine_speeds(machine, CPU, SHAPE, file)
    assert speed_cache.machine_speeds(machine, CPU, SHAPE, file) == first == FIGURES
    assert speed_cache.recall_speeds(machine, CPU, SHAPE, file) == first
    assert len(home) == 1
    assert [path.name for path in speed_cache.speed_file().parent.iterdir()] == ["speeds.json"]


def test_asked_to_it_measures_again(home, machine, file):
    speed_cache.machine_speeds(machine, CPU, SHAPE, file)
    speed_cache.machine_speeds(machine, CPU, SHAPE, file, refresh=True)
    assert len(home) == 2


def changes(machine):
    gpu = Gpu(0, "RTX 4060", 8 << 30, 7 << 30, uuid="GPU-1")
    yield machine, CARD, SHAPE
    yield machine, CPU, replace(SHAPE, intermediate=33)
    yield machine, CPU, replace(SHAPE, dtype=torch.float16)
    yield replace(machine, cpu="Another"), CPU, SHAPE
    yield replace(machine, cpu_threads=99), CPU, SHAPE
    yield replace(machine, survey=GpuSurvey((gpu,), "580", "")), CPU, SHAPE
    yield replace(machine, survey=GpuSurvey((gpu,), "590", "")), CPU, SHAPE
    yield replace(machine, versions={**machine.versions, "torch": "9.9"}), CPU, SHAPE


def test_another_machine_has_other_figures_and_the_first_are_kept(home, machine, file):
    speed_cache.machine_speeds(machine, CPU, SHAPE, file)
    for done, (other, device, shape) in enumerate(changes(machine), start=2):
        speed_cache.machine_speeds(other, device, shape, file)
        assert len(home) == done
    speed_cache.machine_speeds(machine, CPU, SHAPE, file)
    assert len(home) == done


def test_free_memory_alone_changes_nothing(home, machine, file):
    gpu = Gpu(0, "RTX 4060", 8 << 30, 7 << 30, uuid="GPU-1", pcie_generation=1)
    for now in (gpu, replace(gpu, vram_free_bytes=1 << 30, pcie_generation=4)):
        here = replace(machine, ram_available_bytes=now.vram_free_bytes, survey=GpuSurvey((now,), "580", ""))
        speed_cache.machine_speeds(here, CPU, SHAPE, file)
    assert len(home) == 1


def test_another_disk_has_other_figures(machine, file, monkeypatch):
    class Partition:
        def __init__(self, device, mountpoint):
            self.device, self.mountpoint, self.fstype = device, str(mountpoint), "ext4"

    disks = [Partition("/dev/sda", "/"), Partition("/dev/nvme0", file.parent)]
    monkeypatch.setattr(speed_cache.psutil, "disk_partitions", lambda all: disks)
    assert speed_cache.fingerprint(machine, CPU, SHAPE, file)["disk"][0] == "/dev/nvme0"
    assert speed_cache.fingerprint(machine, CPU, SHAPE, file.parent.parent)["disk"][0] == "/dev/sda"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{half a fi", "could not be read"),
        ("[]", "could not be read"),
        ('{"format": 99, "speeds": {}}', "of another version"),
        ("\xff\xfe", "could not be read"),
    ],
)
def test_a_file_that_makes_no_sense_is_said_and_replaced(home, machine, file, content, words):
    stored = speed_cache.speed_file()
    stored.parent.mkdir(parents=True)
    stored.write_text(content, encoding="latin-1")
    assert words in speed_cache.machine_speeds(machine, CPU, SHAPE, file).notes[0]
    assert speed_cache.machine_speeds(machine, CPU, SHAPE, file).notes == ()
    assert len(home) == 1


@pytest.mark.parametrize("damage", [{"copy": None}, {"expert": {"alone": -1, "together": 1}}, {"expert_bytes": "x"}])
def test_figures_that_make_no_sense_are_measured_again(home, machine, file, damage):
    speed_cache.machine_speeds(machine, CPU, SHAPE, file)
    stored = json.loads(speed_cache.speed_file().read_text())
    (figures,) = stored["speeds"].values()
    figures |= damage
    speed_cache.speed_file().write_text(json.dumps(stored))
    notes = speed_cache.machine_speeds(machine, CPU, SHAPE, file).notes
    assert "make no sense" in notes[0]
    assert len(home) == 2


def test_a_folder_that_cannot_be_written_is_said(home, machine, file):
    speed_cache.speed_file().parent.parent.mkdir(parents=True)
    speed_cache.speed_file().parent.write_text("a file where the folder should be")
    notes = speed_cache.machine_speeds(machine, CPU, SHAPE, file).notes
    assert any("could not be kept" in note for note in notes)


def test_a_killed_write_leaves_the_old_file(home, machine, file, monkeypatch):
    speed_cache.machine_speeds(machine, CPU, SHAPE, file)
    before = speed_cache.speed_file().read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(speed_cache.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        speed_cache.machine_speeds(machine, CPU, SHAPE, file, refresh=True)
    assert speed_cache.speed_file().read_bytes() == before
    assert [path.name for path in speed_cache.speed_file().parent.iterdir()] == ["speeds.json"]


def test_the_oldest_figures_leave_first(home, machine, file):
    for intermediate in range(1, 20):
        speed_cache.machine_speeds(machine, CPU, replace(SHAPE, intermediate=intermediate), file)
    assert speed_cache.recall_speeds(machine, CPU, replace(SHAPE, intermediate=1), file) is None
    assert speed_cache.recall_speeds(machine, CPU, replace(SHAPE, intermediate=19), file) is not None
