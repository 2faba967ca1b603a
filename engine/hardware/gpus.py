"""Which NVIDIA cards there are, asked from NVML; in words where there are none."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import pynvml as nvml

from engine.hardware.gpu import Gpu
from engine.hardware.nvml import answer, failure_in_words, nvml_session, read_gpu

__all__ = ["Gpu", "GpuSurvey", "survey_gpus", "under_wsl"]

NO_GPU = "the model is computed on the processor and its experts are cached in RAM"


@dataclass(frozen=True)
class GpuSurvey:
    """All cards found, the driver's version, and one sentence that explains what was found or why nothing was.

    `cuda_driver` is the newest CUDA (major, minor) that the driver runs. `notes` are sentences about single cards:
    split ones, ones that do not answer, ones in a poor slot.
    """

    gpus: tuple[Gpu, ...]
    driver: str | None
    explanation: str
    cuda_driver: tuple[int, int] | None = None
    wsl: bool = False
    notes: tuple[str, ...] = ()


def survey_gpus() -> GpuSurvey:
    """Ask NVML for all cards. Never raises: a missing or broken driver becomes the explanation."""
    try:
        with nvml_session():
            return _ask()
    except nvml.NVMLError as problem:
        reason = failure_in_words(problem)
        return GpuSurvey((), None, f"{reason}: {NO_GPU}.", wsl=under_wsl())


def under_wsl(release: str | None = None) -> bool:
    """Whether this is Linux inside Windows, whose driver counts memory for all of Windows."""
    return "microsoft" in (release or platform.release()).lower()


def _ask() -> GpuSurvey:
    driver = answer("nvmlSystemGetDriverVersion")
    version = answer("nvmlSystemGetCudaDriverVersion_v2")
    gpus, notes = _read_all()
    return GpuSurvey(
        gpus=gpus,
        driver=driver,
        explanation=_explain(gpus, driver, notes),
        cuda_driver=version and (version // 1000, version % 1000 // 10),
        wsl=under_wsl(),
        notes=(*notes, *(note for gpu in gpus for note in _notes_on(gpu)), *_note_on_system(gpus)),
    )


def _read_all() -> tuple[tuple[Gpu, ...], list[str]]:
    """The cards that answer, and a sentence for each that does not."""
    gpus, failures = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpus.append(read_gpu(index))
        except nvml.NVMLError as problem:
            failures.append(f"Card {index} is left out: {failure_in_words(problem)}.")
    return tuple(gpus), failures


def _explain(gpus: tuple[Gpu, ...], driver: str | None, failures: list[str]) -> str:
    if not gpus and failures:
        return f"{' '.join(failures)} No other is there: {NO_GPU}."
    if not gpus:
        return f"The NVIDIA driver is there but reports no card: {NO_GPU}."
    names = ", ".join(gpu.name for gpu in gpus)
    return f"Found {names} (driver {driver or 'of unknown version'})."


def _notes_on(gpu: Gpu) -> list[str]:
    notes = []
    if gpu.mig_enabled and gpu.mig_instances:
        count = len(gpu.mig_instances)
        parts = "one part, which is all that CUDA sees" if count == 1 else f"{count} parts, of which CUDA uses one"
        notes.append(f"{gpu.name} is split (MIG) into {parts}.")
    elif gpu.mig_enabled:
        notes.append(f"{gpu.name} is set to be split (MIG) but has no part to compute on: create one, or turn MIG off.")
    if gpu.pcie_lanes and gpu.pcie_max_lanes and gpu.pcie_lanes < gpu.pcie_max_lanes:
        notes.append(
            f"{gpu.name} is connected by {gpu.pcie_lanes} of the {gpu.pcie_max_lanes} PCIe lanes that card and slot "
            "have: experts arrive slower than they could. See that it sits firmly and shares no lanes."
        )
    return notes


def _note_on_system(gpus: tuple[Gpu, ...]) -> list[str]:
    if not gpus or not under_wsl():
        return []
    return [
        "This is WSL: the driver does not tell how much memory each program uses, Windows may move VRAM to RAM "
        "instead of refusing it, and memory for fast copies (pinned) is limited."
    ]
