"""Asking NVML, the driver's own library, through `pynvml`: a session, one card, and its errors in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pynvml as nvml

from engine.hardware.gpu import Gpu, GpuProcess, MigInstance

_REASONS = {
    nvml.NVMLError_LibraryNotFound: "No NVIDIA driver is installed",
    nvml.NVMLError_DriverNotLoaded: "The NVIDIA driver is installed but not loaded",
    nvml.NVMLError_LibRmVersionMismatch: "The NVIDIA driver was updated and needs a restart of the machine",
    nvml.NVMLError_NoPermission: "This user may not ask the NVIDIA driver",
    nvml.NVMLError_FunctionNotFound: "The NVIDIA driver is too old for what is asked of it",
    nvml.NVMLError_GpuIsLost: "The NVIDIA card has stopped answering",
    nvml.NVMLError_ResetRequired: "The NVIDIA card has failed and needs a restart of the machine",
}


@contextmanager
def nvml_session() -> Iterator[None]:
    """NVML initialised while open. Raises NVMLError where there is no working driver."""
    nvml.nvmlInit()
    try:
        yield
    finally:
        with suppress(nvml.NVMLError):  # a driver that broke meanwhile cannot be left in order either
            nvml.nvmlShutdown()


def read_gpu(index: int) -> Gpu:
    """Everything about the card at NVML's `index`. Raises NVMLError where the card itself does not answer."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = answer("nvmlDeviceGetMemoryInfo", handle)
    pci = answer("nvmlDeviceGetPciInfo", handle)
    mig = answer("nvmlDeviceGetMigMode", handle)
    mig_enabled = bool(mig and mig[0])
    return Gpu(
        index=index,
        name=_text(answer("nvmlDeviceGetName", handle)) or f"card {index}",
        vram_total_bytes=memory and int(memory.total),
        vram_free_bytes=memory and int(memory.free),
        pcie_generation=answer("nvmlDeviceGetCurrPcieLinkGeneration", handle),
        pcie_lanes=answer("nvmlDeviceGetCurrPcieLinkWidth", handle),
        pcie_max_generation=answer("nvmlDeviceGetMaxPcieLinkGeneration", handle),
        pcie_max_lanes=answer("nvmlDeviceGetMaxPcieLinkWidth", handle),
        uuid=_text(answer("nvmlDeviceGetUUID", handle)),
        pci_bus=pci and _text(pci.busId),
        vram_used_bytes=memory and int(memory.used),
        compute_capability=answer("nvmlDeviceGetCudaComputeCapability", handle),
        processes=read_processes(handle),
        mig_enabled=mig_enabled,
        mig_instances=_read_mig_instances(handle) if mig_enabled else (),
    )


def read_processes(handle: Any, names: bool = True) -> tuple[GpuProcess, ...] | None:
    """Programs that hold memory of the card, computing or drawing, largest first; None where nothing is told.

    Looking up their names takes most of the time: `names` says whether to.
    """
    lists = [_process_list(handle, kind) for kind in ("Compute", "Graphics")]
    if all(processes is None for processes in lists):
        return None
    used: dict[int, int | None] = {}
    for process in [process for processes in lists for process in processes or ()]:
        before = used.get(process.pid, 0)  # one that computes and draws is in both lists, with the same sum
        told = process.usedGpuMemory
        used[process.pid] = None if before is None or told is None else max(before, int(told))
    own = os.getpid()
    found = [GpuProcess(pid, _process_name(pid) if names else None, size, pid == own) for pid, size in used.items()]
    return tuple(sorted(found, key=lambda process: -(process.used_bytes or 0)))


def answer(question: str, *arguments: Any) -> Any:
    """What NVML answers, or None where this driver or card does not know it."""
    try:
        return getattr(nvml, question)(*arguments)
    except nvml.NVMLError:
        return None


def failure_in_words(problem: Exception) -> str:
    """What an NVMLError means, without a full stop: "No NVIDIA driver is installed"."""
    for kind, reason in _REASONS.items():
        if isinstance(problem, kind):
            return reason
    return f"The NVIDIA driver answers with an error ({problem})"


def _process_list(handle: Any, kind: str) -> list[Any] | None:
    # the unversioned function raises something else than an NVMLError where the driver only knows the older one
    versions = (answer(f"nvmlDeviceGet{kind}RunningProcesses_{version}", handle) for version in ("v3", "v2"))
    return next((processes for processes in versions if processes is not None), None)


def _process_name(pid: int) -> str | None:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:  # it has ended, or it is of another container or user
        return None


def _read_mig_instances(handle: Any) -> tuple[MigInstance, ...]:
    places = range(answer("nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
    parts = [(place, answer("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)) for place in places]
    return tuple(_read_mig_instance(part, place) for place, part in parts if part is not None)


def _read_mig_instance(part: Any, place: int) -> MigInstance:
    memory = answer("nvmlDeviceGetMemoryInfo", part)
    return MigInstance(
        index=place,
        uuid=_text(answer("nvmlDeviceGetUUID", part)),
        name=_text(answer("nvmlDeviceGetName", part)) or f"instance {place}",
        vram_total_bytes=memory and int(memory.total),
        vram_free_bytes=memory and int(memory.free),
    )


def _text(told: str | bytes | None) -> str | None:
    """NVML's strings; those inside structures come as bytes."""
    return told.decode() if isinstance(told, bytes) else told
