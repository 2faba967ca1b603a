"""Which build of PyTorch pip takes here, and what it weighs."""

import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from launcher.nvidia import NvidiaCards, Version

CPU_INDEX_URL = "https://download.pytorch.org/whl/cpu"
IMPATIENTLY = ("--retries", "1", "--timeout", "10")
CPU_INDEX_OPTIONS = ("--index-url", CPU_INDEX_URL, *IMPATIENTLY)
NEWEST_DRIVER = "580"  # NVIDIA's driver branch of CUDA 13.0
AGAIN = "delete the folder .venv and start the same command again"

OfferedVersion = Callable[[Sequence[str]], str | None]


class TorchBuild(NamedTuple):
    """A build, with the room that it and its own libraries take, as seen with torch 2.13.

    `advice` is a sentence for the person where the card will not be used for want of something.
    """

    words: str
    pip_options: tuple[str, ...]
    download_bytes: int
    disk_bytes: int
    advice: str = ""


class CudaLine(NamedTuple):
    """One of the CUDA versions that torch 2.13 is built for: which drivers and cards it runs with.

    From PyTorch's release compatibility matrix; the build for 12.6 runs on every driver for CUDA 12, by the minor
    version compatibility that NVIDIA promises.
    """

    name: str
    oldest_driver: Version
    oldest_card: Version
    newest_card: Version

    @property
    def index_options(self) -> tuple[str, ...]:
        return ("--index-url", f"https://download.pytorch.org/whl/{self.name}")

    def has_code_for(self, cards: NvidiaCards) -> bool:
        """Whether one of the cards can compute with it."""
        capabilities = cards.capabilities
        return not capabilities or any(self.oldest_card <= one <= self.newest_card for one in capabilities)

    def runs_with(self, cards: NvidiaCards) -> bool:
        """Whether the driver is new enough, too; one that does not tell its version is taken for new."""
        driver = cards.cuda_version
        return self.has_code_for(cards) and (driver is None or driver >= self.oldest_driver)


CPU_BUILD = TorchBuild("PyTorch for CPU", (), 200_000_000, 800_000_000)
CUDA_BUILD = TorchBuild("PyTorch with CUDA", (), 3_000_000_000, 7_000_000_000)
CUDA_13_0 = CudaLine("cu130", oldest_driver=(13, 0), oldest_card=(7, 5), newest_card=(12, 99))
CUDA_12_6 = CudaLine("cu126", oldest_driver=(12, 0), oldest_card=(5, 0), newest_card=(9, 99))
CUDA_LINES = (CUDA_13_0, CUDA_12_6)
DEFAULT_ON_LINUX = CUDA_13_0  # what the package index offers there; on Windows it offers a build without CUDA


def choose_torch_build(
    offered_version: OfferedVersion,
    cards: NvidiaCards | None,
    system: str | None = None,
    machine: str | None = None,
) -> TorchBuild:
    """The build to install: with CUDA where an NVIDIA card can be used, and never gigabytes of it elsewhere.

    `offered_version(pip_options)` is the version pip would take, None if it finds none. An index of the person's
    own that offers a labelled build ("2.13.0+cpu") decides.
    """
    system, machine = system or platform.system(), machine or platform.machine()
    if (system, machine) not in (("Linux", "x86_64"), ("Linux", "aarch64"), ("Windows", "AMD64")):
        return CPU_BUILD
    offered = offered_version(()) or ""
    if "+cpu" in offered:
        return CPU_BUILD
    if "+cu" in offered:
        return CUDA_BUILD
    if cards is not None:
        return _cuda_build(offered_version, cards, system)
    if system == "Linux":
        return _build_without_card(offered_version)
    return CPU_BUILD


def _build_without_card(offered_version: OfferedVersion) -> TorchBuild:
    if offered_version(CPU_INDEX_OPTIONS):
        return CPU_BUILD._replace(pip_options=CPU_INDEX_OPTIONS)
    return CUDA_BUILD


def _cuda_build(offered_version: OfferedVersion, cards: NvidiaCards, system: str) -> TorchBuild:
    line = next((line for line in CUDA_LINES if line.runs_with(cards)), None)
    if line is None:
        return _build_without_card(offered_version)._replace(advice=_why_no_line(cards))
    if system == "Linux" and line is DEFAULT_ON_LINUX:
        return CUDA_BUILD
    offered = offered_version((*line.index_options, *IMPATIENTLY)) or ""
    if offered.endswith(f"+{line.name}"):  # a mirror in its place may offer another build
        return CUDA_BUILD._replace(words=f"PyTorch with CUDA ({line.name})", pip_options=line.index_options)
    return CPU_BUILD._replace(
        advice=f"{line.index_options[1]} cannot be reached or has no such build, so PyTorch is installed without CUDA "
        f"and the NVIDIA card stays unused; to use it, check the network, {AGAIN}."
    )


def _why_no_line(cards: NvidiaCards) -> str:
    if not any(line.has_code_for(cards) for line in CUDA_LINES) or cards.cuda_version is None:
        newest = ".".join(str(part) for part in max(cards.capabilities))
        return (
            f"The NVIDIA card (compute capability {newest}) is not among those that this PyTorch computes on, so the "
            "processor is used."
        )
    cuda = ".".join(str(part) for part in cards.cuda_version)
    return (
        f"The NVIDIA driver is too old for this PyTorch (it runs CUDA up to {cuda}), so the processor is used; to use "
        f"the card, install NVIDIA's driver {NEWEST_DRIVER} or newer, {AGAIN}."
    )


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
