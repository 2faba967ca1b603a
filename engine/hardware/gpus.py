"""Which NVIDIA cards there are, asked from NVML; in words where there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

NO_GPU = "the model is computed on the processor and its experts are cached in RAM"


@dataclass(frozen=True)
class Gpu:
    """One card. Sizes in bytes; what the driver does not tell is None."""

    index: int
    name: str
    vram_total_bytes: int | None
    vram_free_bytes: int | None
    pcie_generation: int | None
    pcie_lanes: int | None


@dataclass(frozen=True)
class GpuSurvey:
    """All cards found, the driver's version, and one sentence that explains what was found or why nothing was."""

    gpus: tuple[Gpu, ...]
    driver: str | None
    explanation: str


def survey_gpus(binding: Any = None) -> GpuSurvey:
    """Ask NVML for all cards. Never raises: a missing or broken driver becomes the explanation.

    `binding` stands in for the `pynvml` module.
    """
    nvml = binding or import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as problem:
        return GpuSurvey((), None, _why_not(nvml, problem))
    try:
        return _ask(nvml)
    except nvml.NVMLError as problem:
        return GpuSurvey((), None, _why_not(nvml, problem))
    finally:
        nvml.nvmlShutdown()


def _ask(nvml: Any) -> GpuSurvey:
    driver = _or_none(nvml, nvml.nvmlSystemGetDriverVersion)
    gpus = tuple(_read_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    if not gpus:
        return GpuSurvey((), driver, f"The NVIDIA driver is there but reports no card: {NO_GPU}.")
    names = ", ".join(gpu.name for gpu in gpus)
    return GpuSurvey(gpus, driver, f"Found {names} (driver {driver or 'of unknown version'}).")


def _read_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = _or_none(nvml, nvml.nvmlDeviceGetName, handle) or f"card {index}"
    memory = _or_none(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    return Gpu(
        index=index,
        name=name.decode() if isinstance(name, bytes) else name,  # older bindings return bytes
        vram_total_bytes=memory and int(memory.total),
        vram_free_bytes=memory and int(memory.free),
        pcie_generation=_or_none(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        pcie_lanes=_or_none(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
    )


def _or_none(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this driver or card does not know it."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _why_not(nvml: Any, problem: Exception) -> str:
    reasons = {
        "NVMLError_LibraryNotFound": "No NVIDIA driver is installed",
        "NVMLError_DriverNotLoaded": "The NVIDIA driver is installed but not loaded",
        "NVMLError_LibRmVersionMismatch": "The NVIDIA driver was updated and needs a restart of the machine",
        "NVMLError_NoPermission": "This user may not ask the NVIDIA driver",
        "NVMLError_FunctionNotFound": "The NVIDIA driver is too old for what is asked of it",
        "NVMLError_GpuIsLost": "The NVIDIA card has stopped answering",
    }
    for name, reason in reasons.items():
        kind = getattr(nvml, name, None)
        if kind is not None and isinstance(problem, kind):
            return f"{reason}: {NO_GPU}."
    return f"The NVIDIA driver answers with an error ({problem}): {NO_GPU}."
