"""What this machine is: processor, memory this process may use, cards, system and library versions."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from engine.hardware.gpus import Gpu, GpuSurvey, survey_gpus
from engine.hardware.memory_cgroup import memory_limit

LIBRARIES = ("torch", "transformers", "accelerate", "numba", "numpy", "safetensors", "huggingface_hub", "gradio")


@dataclass(frozen=True)
class Machine:
    """A snapshot; sizes in bytes.

    `ram_total_bytes` and `ram_available_bytes` respect the limit of a container or service;
    `ram_limited_by` then names it. `versions` holds the installed libraries' versions.
    """

    cpu: str
    cpu_cores: int
    cpu_threads: int
    ram_total_bytes: int
    ram_available_bytes: int
    ram_limited_by: str | None
    swap_total_bytes: int
    swap_free_bytes: int
    survey: GpuSurvey
    system: str
    python: str
    versions: dict[str, str]

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return self.survey.gpus

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        cards = {
            "gpus": [gpu.to_dict() for gpu in self.gpus],
            "gpu_driver": self.survey.driver,
            "gpu_cuda": self.survey.cuda_driver and list(self.survey.cuda_driver),
            "gpu_explanation": self.survey.explanation,
            "gpu_notes": list(self.survey.notes),
            "wsl": self.survey.wsl,
        }
        return {name: value for name, value in asdict(self).items() if name != "survey"} | cards


def survey_machine() -> Machine:
    """Look at the machine now. Takes milliseconds and imports no heavy library."""
    memory = psutil.virtual_memory()
    limit = memory_limit()
    swap = psutil.swap_memory()
    return Machine(
        cpu=cpu_name(),
        cpu_cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        cpu_threads=usable_cpu_threads(),
        ram_total_bytes=min(memory.total, limit.limit_bytes) if limit else memory.total,
        ram_available_bytes=min(memory.available, limit.available_bytes) if limit else memory.available,
        ram_limited_by=str(limit.folder) if limit and limit.limit_bytes < memory.total else None,
        swap_total_bytes=swap.total,
        swap_free_bytes=swap.free,
        survey=survey_gpus(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=library_versions(),
    )


def usable_cpu_threads() -> int:
    """Threads this process may run on at once; a container or `taskset` may allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the system tells it."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on, read without importing them."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
