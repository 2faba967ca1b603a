"""Which build of PyTorch pip takes here, and what it weighs."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

CPU_INDEX_URL = "https://download.pytorch.org/whl/cpu"
CPU_INDEX_OPTIONS = ("--index-url", CPU_INDEX_URL, "--retries", "1", "--timeout", "10")


class TorchBuild(NamedTuple):
    """A build, with the room that it and its own libraries take, as seen with torch 2.13."""

    words: str
    pip_options: tuple[str, ...]
    download_bytes: int
    disk_bytes: int


CPU_BUILD = TorchBuild("PyTorch for CPU", (), 200_000_000, 800_000_000)
CUDA_BUILD = TorchBuild("PyTorch with CUDA", (), 3_000_000_000, 7_000_000_000)


def has_nvidia_card() -> bool:
    """True if this machine has an NVIDIA driver."""
    return os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None


def choose_torch_build(
    offered_version: Callable[[Sequence[str]], str | None],
    nvidia_card: bool,
    system: str | None = None,
    machine: str | None = None,
) -> TorchBuild:
    """The build to install: never gigabytes of CUDA libraries on a machine without an NVIDIA card.

    `offered_version(pip_options)` is the version pip would take, None if it finds none. Only Linux's default
    build brings CUDA along.
    """
    on_linux = (system or platform.system()) == "Linux"
    if not on_linux or (machine or platform.machine()) not in ("x86_64", "aarch64"):
        return CPU_BUILD
    if "+cpu" in (offered_version(()) or ""):
        return CPU_BUILD
    if not nvidia_card and offered_version(CPU_INDEX_OPTIONS):
        return CPU_BUILD._replace(pip_options=CPU_INDEX_OPTIONS)
    return CUDA_BUILD


def ask_pip(
    pip: Sequence[str], requirement: str, surroundings: Mapping[str, str]
) -> Callable[[Sequence[str]], str | None]:
    """The `offered_version` of `choose_torch_build` that asks pip itself, with the user's configuration."""

    def offered_version(options: Sequence[str]) -> str | None:
        command = [*pip, "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        answer = subprocess.run(
            [*command, "--report", "-", *options, requirement],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(surroundings),
            check=False,
        )
        if answer.returncode:
            return None
        return json.loads(answer.stdout)["install"][0]["metadata"]["version"]

    return offered_version


def torch_requirement(requirements_path: Path) -> str:
    """The line of the requirements file that pins torch."""
    lines = requirements_path.read_text(encoding="utf-8").splitlines()
    return next(line.strip() for line in lines if line.startswith("torch=="))
