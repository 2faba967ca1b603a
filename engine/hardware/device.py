"""Where the model is computed: the processor or one card, and why, in one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import DeviceNotAvailable, InvalidSetting
from engine.hardware.cuda_order import VISIBLE, match, visible_gpus
from engine.hardware.gpu import Gpu
from engine.hardware.gpus import NO_GPU, GpuSurvey
from engine.hardware.memory_plan import format_bytes
from engine.hardware.torch_cuda import TorchCard, TorchCuda

_CARD = re.compile(r"cuda(:(?P<index>\d+))?")
_OLDEST_DRIVER = {11: "450.80", 12: "525.60", 13: "580.65"}  # by CUDA's major version
_OTHER = "Use auto, cpu, or one of the cards that can be used."
_CUDA_WHEELS = "delete the folder .venv and start `python launch.py` again, which then takes PyTorch's CUDA build"


@dataclass(frozen=True)
class ChosenDevice:
    """`kind` is "cpu" or "cuda"; `index` is PyTorch's number of the card, None on the processor.

    `gpu` is the card as the driver describes it, where it does. The VRAM sizes are those of the part that PyTorch
    computes on, in bytes; None on the processor and where nobody tells. `uuid` is that part's, as the driver writes it.
    """

    kind: str
    index: int | None
    reason: str
    name: str | None = None
    gpu: Gpu | None = None
    vram_total_bytes: int | None = None
    vram_free_bytes: int | None = None
    uuid: str | None = None

    @property
    def torch_name(self) -> str:
        """As `torch.device` takes it."""
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON; the card itself is the machine's."""
        return {
            "kind": self.kind,
            "index": self.index,
            "torch_name": self.torch_name,
            "name": self.name,
            "uuid": self.uuid,
            "vram_total_bytes": self.vram_total_bytes,
            "vram_free_bytes": self.vram_free_bytes,
            "reason": self.reason,
        }


def choose_device(
    asked: str, survey: GpuSurvey, torch_cuda: TorchCuda, environment: Mapping[str, str] | None = None
) -> ChosenDevice:
    """The device for "auto", "cpu", "cuda" or "cuda:N" (PyTorch's numbers).

    "auto" and "cuda" take the card with the most free VRAM that PyTorch can compute on; "auto" falls back to the
    processor and says why. Raises DeviceNotAvailable for a card that is not there or cannot be used, InvalidSetting
    for what is no device.
    """
    if asked == "cpu":
        return ChosenDevice("cpu", None, "The model is computed on the processor, as asked.")
    named = _CARD.fullmatch(asked)
    if asked != "auto" and named is None:
        raise InvalidSetting(f"{asked!r} is not a device.", "Use auto, cpu, cuda, or a card by number such as cuda:1.")
    environment = os.environ if environment is None else environment
    usable = [_describe(card, survey, environment) for card in torch_cuda.cards if _is_usable(card, torch_cuda)]
    if named is not None and named["index"] is not None:
        return _numbered(int(named["index"]), usable, survey, torch_cuda, environment)
    if usable:
        return _roomiest(usable)
    cause, remedy = _why_none(survey, torch_cuda, environment)
    if asked == "auto":
        tail = f" To use it, {remedy}." if survey.gpus else ""
        return ChosenDevice("cpu", None, f"{cause}: {NO_GPU}.{tail}")
    raise DeviceNotAvailable(f"No card can be used: {cause}.", f"Use auto or cpu, or {remedy}.")


def _is_usable(card: TorchCard, torch_cuda: TorchCuda) -> bool:
    return torch_cuda.runs_on(card.compute_capability)


def _describe(card: TorchCard, survey: GpuSurvey, environment: Mapping[str, str]) -> ChosenDevice:
    gpu, part = match(card, survey.gpus, environment)
    memory = part or gpu
    return ChosenDevice(
        kind="cuda",
        index=card.index,
        reason="",
        name=part.name if part else card.name,
        gpu=gpu,
        vram_total_bytes=(memory.vram_total_bytes if memory else None) or card.vram_total_bytes,
        vram_free_bytes=memory.vram_free_bytes if memory else None,
        uuid=memory.uuid if memory else None,
    )


def _roomiest(usable: list[ChosenDevice]) -> ChosenDevice:
    best = max(usable, key=lambda device: (_free(device), -(device.index or 0)))
    if len(usable) == 1:
        return _because(best, "")
    return _because(best, f", of {len(usable)} cards the one with the most free memory")


def _numbered(
    index: int,
    usable: list[ChosenDevice],
    survey: GpuSurvey,
    torch_cuda: TorchCuda,
    environment: Mapping[str, str],
) -> ChosenDevice:
    for device in usable:
        if device.index == index:
            return _because(device, ", as asked")
    if not torch_cuda.cards:
        cause, remedy = _why_none(survey, torch_cuda, environment)
        raise DeviceNotAvailable(f"cuda:{index} cannot be used: {cause}.", f"Use auto or cpu, or {remedy}.")
    for card in torch_cuda.cards:
        if card.index == index:
            raise DeviceNotAvailable(f"cuda:{index} cannot be used: {_too_old(card.name, card, torch_cuda)}.", _OTHER)
    there = ", ".join(f"cuda:{card.index} ({card.name})" for card in torch_cuda.cards)
    hidden = f" {VISIBLE} is {environment[VISIBLE]!r}." if VISIBLE in environment else ""
    raise DeviceNotAvailable(f"There is no card cuda:{index}; there is {there}.{hidden}", _OTHER)


def _because(device: ChosenDevice, why: str) -> ChosenDevice:
    room = ""
    if device.vram_free_bytes is not None and device.vram_total_bytes is not None:
        free, total = format_bytes(device.vram_free_bytes), format_bytes(device.vram_total_bytes)
        room = f" ({free} of {total} free)"
    return replace(device, reason=f"The model is computed on {device.name}, {device.torch_name}{why}{room}.")


def _free(device: ChosenDevice) -> int:
    free = device.vram_free_bytes
    return (device.vram_total_bytes or 0) if free is None else free


def _why_none(survey: GpuSurvey, torch_cuda: TorchCuda, environment: Mapping[str, str]) -> tuple[str, str]:
    """Cause and remedy, as parts of sentences, for PyTorch having no card to compute on."""
    if not survey.gpus and not torch_cuda.cards:
        return survey.explanation.removesuffix(f": {NO_GPU}."), "get the card and its driver to work first"
    found = ", ".join(gpu.name for gpu in survey.gpus) or torch_cuda.cards[0].name
    built, driver = torch_cuda.built_for_cuda, survey.cuda_driver
    if built is None:
        return f"Found {found}, but this PyTorch ({torch_cuda.version}) is built without CUDA", _CUDA_WHEELS
    if VISIBLE in environment and not visible_gpus(survey.gpus, environment):
        return f"Found {found}, but {VISIBLE}={environment[VISIBLE]!r} hides it", f"unset {VISIBLE}"
    if driver is not None and driver[0] < built[0]:
        newest = f"its driver {survey.driver or ''} runs CUDA up to {_dotted(driver)}".replace("  ", " ")
        oldest = _OLDEST_DRIVER.get(built[0])
        remedy = f"install NVIDIA's driver {oldest} or newer" if oldest else "install NVIDIA's newest driver"
        return f"Found {found}, but {newest} and this PyTorch needs CUDA {_dotted(built)}", remedy
    if torch_cuda.cards:
        return _too_old(f"Found {found}, but", torch_cuda.cards[0], torch_cuda), "use another card"
    said = f" ({torch_cuda.problem})" if torch_cuda.problem else ""
    return f"Found {found}, but PyTorch cannot reach it{said}", "restart the machine or install NVIDIA's driver again"


def _too_old(subject: str, card: TorchCard, torch_cuda: TorchCuda) -> str:
    known = ", ".join(torch_cuda.architectures)
    capability = _dotted(card.compute_capability)
    return f"{subject} its compute capability {capability} is not among those of this PyTorch ({known})"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
