"""What NVIDIA's driver says of itself and its cards, before anything is installed that could ask it."""

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Version = tuple[int, int]
_WSL_LIBRARY = "/usr/lib/wsl/lib/libnvidia-ml.so.1"  # not on the loader's path in every distribution


class NvidiaCards(NamedTuple):
    """The newest CUDA that the driver runs and the cards' compute capabilities; None and () where it does not tell."""

    cuda_version: Version | None
    capabilities: tuple[Version, ...] = ()


def find_nvidia_cards(load: Callable[[str], Any] = ctypes.CDLL) -> NvidiaCards | None:
    """The cards of this machine, None where there is none or no driver for it."""
    for name in _library_names():
        try:
            library = load(name)
        except OSError:
            continue
        return _ask(library)
    return NvidiaCards(None) if _has_traces_of_a_driver() else None


def _library_names() -> list[str]:
    if sys.platform == "win32":
        programs = os.environ.get("ProgramFiles", "")  # noqa: SIM112 - Windows' own spelling
        return ["nvml.dll", str(Path(programs, "NVIDIA Corporation", "NVSMI", "nvml.dll"))]
    return ["libnvidia-ml.so.1", _WSL_LIBRARY]


def _has_traces_of_a_driver() -> bool:
    return os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None


def _ask(nvml: Any) -> NvidiaCards | None:
    """What NVML answers; a driver that does not start is one that does not tell."""
    if nvml.nvmlInit_v2():
        return NvidiaCards(None) if _has_traces_of_a_driver() else None
    try:
        count = _number(nvml.nvmlDeviceGetCount_v2)
        if not count:
            return None
        version = _number(nvml.nvmlSystemGetCudaDriverVersion_v2)
        capabilities = (_capability(nvml, index) for index in range(count))
        return NvidiaCards(
            None if not version else (version // 1000, version % 1000 // 10),
            tuple(capability for capability in capabilities if capability is not None),
        )
    finally:
        nvml.nvmlShutdown()


def _number(question: Any) -> int | None:
    answer = ctypes.c_int()
    return None if question(ctypes.byref(answer)) else answer.value


def _capability(nvml: Any, index: int) -> Version | None:
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
        return None
    if nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)):
        return None
    return major.value, minor.value
