"""Cards as the real `pynvml` tells them, above a stub of NVIDIA's library."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine.hardware.gpu import Gpu, GpuProcess
from engine.hardware.gpus import GpuSurvey, survey_gpus, under_wsl
from tests.hardware import watched_card
from tests.hardware.stub_driver import CARD, GIB, LIBRARY, StubDriver, process_with_library

SECOND = CARD | {"name": "NVIDIA RTX A2000", "uuid": "GPU-5e1f0000-0000-4000-8000-000000000002", "total": 12 * GIB}


def ask(driver: StubDriver) -> GpuSurvey:
    return driver.call(survey_gpus)


def test_no_library(tmp_path):
    (tmp_path / LIBRARY).write_text("not a library")  # hides a real one further down the search path
    with process_with_library(tmp_path, tmp_path / "absent") as pool:
        survey = pool.submit(survey_gpus).result(timeout=60)
    assert survey.gpus == ()
    assert survey.explanation.startswith("No NVIDIA driver is installed: the model is computed on the processor")


def test_no_device(driver):
    survey = ask(driver)
    assert (survey.gpus, survey.driver, survey.cuda_driver) == ((), "580.65.06", (13, 0))
    assert "reports no card" in survey.explanation


def test_one_card(driver):
    driver.tell(CARD)
    (gpu,) = ask(driver).gpus
    expected = Gpu(
        index=0,
        name="NVIDIA GeForce RTX 4060",
        vram_total_bytes=8 * GIB,
        vram_free_bytes=6 * GIB,
        vram_used_bytes=2 * GIB,
        pcie_generation=1,  # idle: it negotiates 4 when it works
        pcie_lanes=8,
        pcie_max_generation=4,
        pcie_max_lanes=8,
        uuid="GPU-5e1f0000-0000-4000-8000-000000000001",
        pci_bus="00000000:01:00.0",
        compute_capability=(8, 9),
        processes=(),
    )
    assert gpu == expected
    assert gpu.pcie_bytes_per_second == pytest.approx(8 * 1.969e9)
    assert json.loads(json.dumps(gpu.to_dict()))["vram_others_bytes"] == 0


def test_two_cards(driver):
    driver.tell(CARD, SECOND)
    survey = ask(driver)
    assert [(gpu.index, gpu.vram_total_bytes) for gpu in survey.gpus] == [(0, 8 * GIB), (1, 12 * GIB)]
    assert survey.explanation == "Found NVIDIA GeForce RTX 4060, NVIDIA RTX A2000 (driver 580.65.06)."
    assert survey.notes == ()


def test_a_nearly_full_card_and_who_fills_it(driver):
    mine = driver.call(os.getpid)
    driver.tell(
        CARD
        | {
            "free": GIB // 8,
            "process.0": f"own {GIB} compute",
            "process.1": f"{os.getpid()} {5 * GIB} graphics",
            "process.2": f"{os.getpid()} {5 * GIB} compute",  # one program that draws and computes counts once
            "process.3": f"4000000 {GIB // 2} graphics",  # of another container: it has no name here
        }
    )
    (gpu,) = ask(driver).gpus
    assert gpu.vram_free_bytes == GIB // 8
    assert [(process.pid, process.used_bytes) for process in gpu.processes] == [
        (os.getpid(), 5 * GIB),
        (mine, GIB),
        (4000000, GIB // 2),
    ]
    assert [process.own for process in gpu.processes] == [False, True, False]
    assert gpu.processes[0].name and gpu.processes[2].name is None
    assert (gpu.vram_own_bytes, gpu.vram_others_bytes) == (GIB, 5 * GIB + GIB // 2)


def test_another_program_grows(driver):
    seen = []
    for used in (GIB, 3 * GIB):
        driver.tell(CARD | {"free": 8 * GIB - used, "process.0": f"77 {used} compute"})
        (gpu,) = ask(driver).gpus
        seen.append((gpu.vram_free_bytes, gpu.vram_others_bytes))
    assert seen == [(7 * GIB, GIB), (5 * GIB, 3 * GIB)]


def test_programs_whose_use_is_not_told(driver):
    """Windows and WSL: the list is there, the sizes are not."""
    driver.tell(CARD | {"process.0": "own unknown compute", "process.1": "4000000 unknown graphics"})
    (gpu,) = ask(driver).gpus
    assert GpuProcess(4000000, None, None, own=False) in gpu.processes
    assert (gpu.vram_own_bytes, gpu.vram_others_bytes) == (None, None)
    assert gpu.vram_used_bytes == 2 * GIB


def test_a_driver_without_a_list_of_programs(driver):
    told = {key: value for key, value in CARD.items() if key != "processes"}
    driver.tell(told)
    (gpu,) = ask(driver).gpus
    assert (gpu.processes, gpu.vram_others_bytes) == (None, None)


def test_an_old_driver_with_the_older_list(driver):
    missing = {f"error.nvmlDeviceGet{kind}RunningProcesses_v3": 13 for kind in ("Compute", "Graphics")}
    driver.tell(CARD | {"process.0": f"77 {GIB} compute"}, **missing)
    (gpu,) = ask(driver).gpus
    assert gpu.vram_others_bytes == GIB


def test_a_split_card(driver):
    parts = {
        "part.0.name": "NVIDIA A100 MIG 1g.10gb",
        "part.0.uuid": "MIG-0000",
        "part.0.total": 10 * GIB,
        "part.0.free": 9 * GIB,
        "part.2.uuid": "MIG-0002",
    }
    driver.tell(CARD | {"mig": 1} | parts)
    survey = ask(driver)
    (gpu,) = survey.gpus
    assert gpu.mig_enabled
    first, second = gpu.mig_instances
    assert (first.uuid, first.vram_total_bytes, first.vram_free_bytes) == ("MIG-0000", 10 * GIB, 9 * GIB)
    assert (second.index, second.name, second.vram_total_bytes) == (2, "instance 2", None)
    assert "split (MIG) into 2 parts" in survey.notes[0]


def test_a_card_with_a_single_part(driver):
    driver.tell(CARD | {"mig": 1, "part.0.uuid": "MIG-0000"})
    assert "one part, which is all that CUDA sees" in ask(driver).notes[0]


def test_a_card_set_to_be_split_without_parts(driver):
    driver.tell(CARD | {"mig": 1})
    assert "has no part to compute on" in ask(driver).notes[0]


def test_a_card_that_could_be_split_and_is_not(driver):
    driver.tell(CARD | {"mig": 0})
    assert ask(driver).gpus[0].mig_enabled is False
    assert ask(driver).notes == ()


def test_a_card_in_a_poor_slot(driver):
    driver.tell(CARD | {"lanes": 4, "max_lanes": 16})
    survey = ask(driver)
    assert "4 of the 16 PCIe lanes" in survey.notes[0]
    assert survey.gpus[0].pcie_bytes_per_second == pytest.approx(4 * 1.969e9)


def test_one_card_of_two_falls_off_the_bus(driver):
    driver.tell(CARD | {"error.nvmlDeviceGetHandleByIndex_v2": 15}, SECOND)
    survey = ask(driver)
    assert [gpu.name for gpu in survey.gpus] == ["NVIDIA RTX A2000"]
    assert survey.notes == ("Card 0 is left out: The NVIDIA card has stopped answering.",)


def test_the_only_card_falls_off_the_bus(driver):
    driver.tell(CARD | {"error.nvmlDeviceGetHandleByIndex_v2": 15})
    survey = ask(driver)
    assert survey.gpus == ()
    assert "Card 0 is left out" in survey.explanation and "on the processor" in survey.explanation


@pytest.mark.parametrize(
    ("failing", "code", "words"),
    [
        ("nvmlInit", 9, "installed but not loaded"),
        ("nvmlInit", 18, "was updated and needs a restart"),
        ("nvmlInit", 13, "too old"),
        ("nvmlDeviceGetCount_v2", 4, "may not ask"),
        ("nvmlDeviceGetCount_v2", 999, "Unknown Error"),
    ],
)
def test_a_driver_that_fails(driver, failing, code, words):
    driver.tell(CARD, **{f"error.{failing}": code})
    survey = ask(driver)
    assert survey.gpus == ()
    assert words in survey.explanation and "on the processor" in survey.explanation


def test_a_driver_that_fails_while_it_is_left_changes_nothing(driver):
    driver.tell(CARD, **{"error.nvmlShutdown": 999})
    assert len(ask(driver).gpus) == 1


@pytest.mark.parametrize(
    ("silent", "field"),
    [
        ("total", "vram_total_bytes"),
        ("generation", "pcie_generation"),
        ("capability", "compute_capability"),
        ("uuid", "uuid"),
        ("bus", "pci_bus"),
    ],
)
def test_what_a_card_does_not_tell_is_left_open(driver, silent, field):
    driver.tell({key: value for key, value in CARD.items() if key != silent})
    (gpu,) = ask(driver).gpus
    assert getattr(gpu, field) is None
    assert gpu.pcie_lanes == 8


def test_a_card_without_a_name_is_called_by_its_number(driver):
    driver.tell({key: value for key, value in CARD.items() if key != "name"})
    assert ask(driver).gpus[0].name == "card 0"


def test_the_driver_of_this_machine_is_asked_without_an_error():
    survey = survey_gpus()
    assert survey.explanation
    assert bool(survey.gpus) == survey.explanation.startswith("Found ")


def test_below_wsl_what_is_different_is_said(driver):
    driver.tell(CARD)
    survey = driver.call(watched_card.survey_under_wsl)
    assert survey.wsl
    assert "the driver does not tell how much memory each program uses" in survey.notes[0]


@pytest.mark.parametrize(
    ("release", "wsl"), [("5.15.167.4-microsoft-standard-WSL2", True), ("6.8.0-45-generic", False)]
)
def test_wsl_by_its_kernel(release, wsl):
    assert under_wsl(release) is wsl
    assert under_wsl() is ("microsoft" in Path("/proc/version").read_text().lower())
