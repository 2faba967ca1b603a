"""`doctor` on machines that are not this one: cards of the stub driver, kept speeds, a card that torch cannot use."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.machine_view import gpu_rows, speed_rows
from engine.hardware import machine, speed_cache, torch_cuda
from engine.hardware.disk_probe import DiskProbe
from engine.hardware.gpu import Gpu, GpuProcess, MigInstance
from engine.hardware.gpus import survey_gpus
from engine.hardware.machine_speeds import MachineSpeeds
from engine.hardware.speed import Speed
from engine.hardware.torch_cuda import TorchCuda
from tests.hardware.stub_driver import CARD, GIB, driver, stub_library, stub_process  # noqa: F401 - fixtures too
from tests.tiny_models import tiny_checkpoint

GB = 10**9
PLAIN = Gpu(0, "RTX 4060", 8 * GB, 6 * GB, pcie_generation=4, pcie_lanes=8, pcie_max_generation=4, pcie_max_lanes=8)


def run(*options: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["doctor", "--model", str(tiny_checkpoint("mixtral")), *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.fixture
def card_elsewhere(driver, tmp_path, monkeypatch):  # noqa: F811
    """This machine with what the stub driver says: one card that another program uses, out of PyTorch's reach."""
    driver.tell(CARD | {"process.0": f"4000000 {GIB} graphics"})
    survey = driver.call(survey_gpus)
    monkeypatch.setattr(machine, "survey_gpus", lambda: survey)
    monkeypatch.setattr(torch_cuda, "ask_torch", lambda: TorchCuda("2.13.0+cpu", None))
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path))


def test_doctor_sees_the_drivers_card_and_says_why_torch_cannot_use_it(card_elsewhere):
    found = json.loads(run("--json"))
    (card,) = found["machine"]["gpus"]
    assert (card["name"], card["vram_others_bytes"], card["pcie_generation"]) == ("NVIDIA GeForce RTX 4060", GIB, 1)
    assert found["machine"]["gpu_cuda"] == [13, 0]
    assert found["device"]["torch_name"] == "cpu"
    assert "Found NVIDIA GeForce RTX 4060, but this PyTorch (2.13.0+cpu) is built" in found["device"]["reason"]
    assert found["device"]["reason"] in found["decisions"]
    shown = run()
    assert "PCIe 4.0 x8" in shown and "CUDA up to 13.0" in shown


def test_doctor_refuses_a_card_that_cannot_be_used(card_elsewhere):
    found = json.loads(run("--device", "cuda:1", "--json", code=2))
    assert "cuda:1 cannot be used" in found["error"]["cause"]
    assert found["machine"]["gpus"]


def test_speeds_are_kept_until_they_are_asked_for_again(card_elsewhere, monkeypatch):
    measured = []
    measure = speed_cache.measure_speeds
    monkeypatch.setattr(speed_cache, "measure_speeds", lambda *given: measured.append(given) or measure(*given))
    first = json.loads(run("--json"))
    assert first["speeds"]["copy"]["alone"] > 0 and first["speeds"]["expert"]["together"] > 0
    assert first["disk"]["speed"]["best_bytes_per_second"] > 0
    half = json.loads(run("--budget", "50%", "--json"))
    assert [sentence for sentence in half["decisions"] if sentence.startswith("An expert (")]
    assert half["speeds"] == first["speeds"]
    assert len(measured) == 1
    run("--refresh")
    assert len(measured) == 2


def words(rows: list[tuple[str, str]]) -> dict[str, str]:
    return {name.strip(): text for name, text in rows}


def test_a_card_that_tells_everything():
    gpu = Gpu(
        **vars(PLAIN)
        | {
            "pcie_generation": 1,
            "pcie_max_lanes": 16,
            "compute_capability": (8, 9),
            "processes": (
                GpuProcess(1, "firefox", GB // 2, own=False),
                GpuProcess(2, None, GB // 4, own=False),
                GpuProcess(3, "python", GB, own=True),
            ),
        }
    )
    shown = words(gpu_rows(gpu))
    assert shown["card 0"] == "RTX 4060, compute capability 8.9: 6.0 GB free of 8.0 GB"
    assert shown["used by"] == "firefox 500 MB, process 2 250 MB: 750 MB"
    assert shown["slot"] == "PCIe 4.0 x8 of x16, at most 15.8 GB/s; generation 1 now, to save power"


def test_a_card_whose_driver_tells_little():
    shown = words(gpu_rows(Gpu(1, "card 1", None, None)))
    assert shown == {"card 1": "card 1: the driver does not tell its memory", "used by": "the driver does not tell"}
    untold = Gpu(**vars(PLAIN) | {"processes": (GpuProcess(1, "dwm.exe", None, own=False),)})
    assert words(gpu_rows(untold))["used by"] == "dwm.exe (the driver does not tell how much each holds)"
    partly = Gpu(**vars(PLAIN) | {"processes": (GpuProcess(2, "a", GB, own=False), *untold.processes)})
    assert words(gpu_rows(partly))["used by"] == "a 1.0 GB, dwm.exe (the driver does not tell all sizes)"


def test_many_programs_are_summed_up_and_parts_are_listed():
    programs = tuple(GpuProcess(pid, f"p{pid}", GB // 10, own=False) for pid in range(7))
    part = MigInstance(0, "MIG-1", "1g.10gb", 10 * GB, 9 * GB)
    shown = words(gpu_rows(Gpu(**vars(PLAIN) | {"processes": programs, "mig_instances": (part,)})))
    assert shown["used by"].endswith("and 3 more: 700 MB")
    assert shown["part 0"] == "1g.10gb: 9.0 GB free of 10.0 GB"


def test_speeds_in_words():
    disk = DiskProbe(True, 4096, 1e9, 2e9, 1e9, 2e9, "Read past the page cache (O_DIRECT).")
    on_card = MachineSpeeds(
        device="cuda:0",
        copy=Speed(12e9, 11e9),
        copy_pageable=Speed(6e9, 5e9),
        expert=Speed(20e9, 10e9),
        expert_bytes=10**7,
        expert_dtype="bfloat16",
        expert_by="compiled kernel",
        disk=disk,
        disk_reader=Speed(1e9, 0.5e9),
        measured_at="2026-01-01T00:00:00+00:00",
    )
    shown = words(speed_rows(on_card))
    assert shown["RAM to the card"] == "12.00 GB/s, 11.00 beside the rest"
    assert shown["from ordinary RAM"].startswith("6.00 GB/s")
    assert shown["one expert on the processor"].startswith("0.5 ms (compiled kernel, bfloat16)")
    assert "random 2 readers 2.00" in shown["disk by pattern"]
    assert speed_rows(None) == []
