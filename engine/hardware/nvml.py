"""Asking NVML, the driver's own library, through `pynvml`: a session, one card, and its errors in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import psutil

from engine.hardware.gpu import Gpu, GpuProcess, MigInstance


@contextmanager
def nvml_session(binding: Any = None) -> Iterator[Any]:
    """The `pynvml` module (or its stand-in), initialised. Raises its NVMLError where there is no working driver."""
    nvml = binding or import_module("pynvml")
    nvml.nvmlInit()
    try:
        yield nvml
    finally:
        with suppress(nvml.NVMLError):  # a driver that broke meanwhile cannot be left in order either
            nvml.nvmlShutdown()


def read_gpu(nvml: Any, index: int) -> Gpu:
    """Everything about the card at NVML's `index`. Raises NVMLError where the card itself does not answer."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = answer(nvml, "nvmlDeviceGetMemoryInfo", handle)
    pci = answer(nvml, "nvmlDeviceGetPciInfo", handle)
    mig = answer(nvml, "nvmlDeviceGetMigMode", handle)
    mig_enabled = bool(mig and mig[0])
    return Gpu(
        index=index,
        name=_text(answer(nvml, "nvmlDeviceGetName", handle)) or f"card {index}",
        vram_total_bytes=memory and int(memory.total),
        vram_free_bytes=memory and int(memory.free),
        pcie_generation=answer(nvml, "nvmlDeviceGetCurrPcieLinkGeneration", handle),
        pcie_lanes=answer(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle),
        pcie_max_generation=answer(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
        pcie_max_lanes=answer(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle),
        uuid=_text(answer(nvml, "nvmlDeviceGetUUID", handle)),
        pci_bus=pci and _text(pci.busId),
        vram_used_bytes=memory and int(memory.used),
        compute_capability=answer(nvml, "nvmlDeviceGetCudaComputeCapability", handle),
        processes=read_processes(nvml, handle),
        mig_enabled=mig_enabled,
        mig_instances=_read_mig_instances(nvml, handle) if mig_enabled else (),
    )


def read_processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...] | None:
    """Programs that hold memory of the card, computing or drawing, largest first; None where nothing is told."""
    lists = [_process_list(nvml, handle, kind) for kind in ("Compute", "Graphics")]
    if all(processes is None for processes in lists):
        return None
    used: dict[int, int | None] = {}
    for process in [process for processes in lists for process in processes or ()]:
        before = used.get(process.pid, 0)  # one that computes and draws is in both lists, with the same sum
        told = process.usedGpuMemory
        used[process.pid] = None if before is None or told is None else max(before, int(told))
    found = [GpuProcess(pid, _process_name(pid), size, pid == os.getpid()) for pid, size in used.items()]
    return tuple(sorted(found, key=lambda process: -(process.used_bytes or 0)))


def answer(nvml: Any, question: str, *arguments: Any) -> Any:
    """What NVML answers, or None where this binding, driver or card does not know it."""
    if not hasattr(nvml, question):
        return None
    try:
        return getattr(nvml, question)(*arguments)
    except nvml.NVMLError:
        return None


def failure_in_words(nvml: Any, problem: Exception) -> str:
    """What an NVMLError means, without a full stop: "No NVIDIA driver is installed"."""
    reasons = {
        "NVMLError_LibraryNotFound": "No NVIDIA driver is installed",
        "NVMLError_DriverNotLoaded": "The NVIDIA driver is installed but not loaded",
        "NVMLError_LibRmVersionMismatch": "The NVIDIA driver was updated and needs a restart of the machine",
        "NVMLError_NoPermission": "This user may not ask the NVIDIA driver",
        "NVMLError_FunctionNotFound": "The NVIDIA driver is too old for what is asked of it",
        "NVMLError_GpuIsLost": "The NVIDIA card has stopped answering",
        "NVMLError_ResetRequired": "The NVIDIA card has failed and needs a restart of the machine",
    }
    for name, reason in reasons.items():
        kind = getattr(nvml, name, None)
        if kind is not None and isinstance(problem, kind):
            return reason
    return f"The NVIDIA driver answers with an error ({problem})"


def _process_list(nvml: Any, handle: Any, kind: str) -> list[Any] | None:
    newest = answer(nvml, f"nvmlDeviceGet{kind}RunningProcesses", handle)
    return answer(nvml, f"nvmlDeviceGet{kind}RunningProcesses_v2", handle) if newest is None else newest


def _process_name(pid: int) -> str | None:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:  # it has ended, or it is of another container or user
        return None


def _read_mig_instances(nvml: Any, handle: Any) -> tuple[MigInstance, ...]:
    places = range(answer(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
    parts = [(place, answer(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, place)) for place in places]
    return tuple(_read_mig_instance(nvml, part, place) for place, part in parts if part is not None)


def _read_mig_instance(nvml: Any, part: Any, place: int) -> MigInstance:
    memory = answer(nvml, "nvmlDeviceGetMemoryInfo", part)
    return MigInstance(
        index=place,
        uuid=_text(answer(nvml, "nvmlDeviceGetUUID", part)),
        name=_text(answer(nvml, "nvmlDeviceGetName", part)) or f"instance {place}",
        vram_total_bytes=memory and int(memory.total),
        vram_free_bytes=memory and int(memory.free),
    )


def _text(told: str | bytes | None) -> str | None:
    """NVML's strings; older bindings return bytes."""
    return told.decode() if isinstance(told, bytes) else told
