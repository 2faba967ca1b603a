"""What `doctor` finds: the machine, its cards and speeds, the libraries, the model and its memory plan, and why."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.settings import Settings
from app.terminal_progress import Progress
from engine.errors import EngineError
from engine.hardware.machine import Machine, survey_machine, usable_cpu_threads
from engine.hardware.memory_plan import format_bytes
from engine.paths import models_dir

if TYPE_CHECKING:
    from engine.hardware.device import ChosenDevice
    from engine.hardware.expert_probe import ExpertShape
    from engine.hardware.machine_speeds import MachineSpeeds
    from engine.hardware.torch_cuda import TorchCuda


@dataclass
class Diagnosis:
    """Filled step by step; `error` is what keeps the chosen model from running, if anything does."""

    machine: Machine
    torch_cuda: TorchCuda | None = None
    device: ChosenDevice | None = None
    expert: ExpertShape | None = None
    speeds: MachineSpeeds | None = None
    disk: dict[str, Any] = field(default_factory=dict)
    computation: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    decisions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: EngineError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            "machine": self.machine.to_dict(),
            "torch": self.torch_cuda and asdict(self.torch_cuda),
            "device": self.device and self.device.to_dict(),
            "speeds": self.speeds and self.speeds.to_dict(),
            "disk": self.disk,
            "computation": self.computation,
            "model": self.model,
            "plan": self.plan,
            "decisions": self.decisions,
            "warnings": self.warnings,
            "error": self.error and {"cause": self.error.cause, "remedy": self.error.remedy},
        }


def diagnose(settings: Settings, on_progress: Progress, refresh: bool = False) -> Diagnosis:
    """Looks at everything; builds, loads and changes nothing but the file of measured speeds.

    Takes a few seconds, most of them for imports; some more where speeds were not measured before, or to `refresh`.
    """
    on_progress("Looking at the machine", 0, 0)
    found = Diagnosis(survey_machine())
    found.decisions.append(found.machine.survey.explanation)
    found.warnings += found.machine.survey.notes
    on_progress("Importing libraries", 0, 0)
    _choose_device(found, settings)
    _examine_computation(found)
    on_progress("Reading the model's headers", 0, 0)
    path = _examine_model(found, settings)
    _examine_disk(found, path)
    _examine_speeds(found, path, settings.link, on_progress, refresh)
    return found


def _choose_device(found: Diagnosis, settings: Settings) -> None:
    from engine.hardware.device import ChosenDevice, choose_device
    from engine.hardware.torch_cuda import ask_torch
    from engine.placement import place

    found.torch_cuda = ask_torch()
    try:
        found.device = choose_device(settings.device, found.machine.survey, found.torch_cuda)
        placement = place(settings.device, settings.link)
    except EngineError as error:
        found.error = error
        return
    if found.device.kind == "cuda" and placement.card is None:  # the link that was asked for is the processor's
        found.device = ChosenDevice("cpu", None, placement.reason)
    if found.device.reason not in found.decisions:
        found.decisions.append(found.device.reason)


def _examine_computation(found: Diagnosis) -> None:
    import torch

    from engine.model import kernels

    reason = kernels.unavailable_reason()
    found.computation = {
        "threads": usable_cpu_threads(),
        "torch_threads": torch.get_num_threads(),
        "numba_threading_layer": "omp" if reason is None else None,
        "compiled_kernels": reason is None,
    }
    found.decisions.append(
        "Compiled kernels (numba, OpenMP threads) compute decoding steps."
        if reason is None
        else f"Decoding is computed by torch alone: {reason}"
    )


def _examine_model(found: Diagnosis, settings: Settings) -> Path | None:
    """The plan comes from config and headers; the folder of the model, or None if there is none."""
    from engine.checkpoint.catalog import find_model

    path = None
    try:
        path = find_model(settings.model)
        if path is None:
            found.warnings.append("The built-in model is not built yet; the first start builds it.")
        else:
            _plan(found, settings, path)
    except EngineError as error:
        found.error = found.error or error
    return path


def _plan(found: Diagnosis, settings: Settings, path: Path) -> None:
    from engine.cache.policy_choice import check_policy
    from engine.checkpoint.catalog import describe_model
    from engine.checkpoint.dense_model import open_checkpoint
    from engine.hardware.expert_probe import expert_shape
    from engine.loading import at_precision, context_for, require_supported
    from engine.model.footprint import footprint
    from engine.placement import place

    placement = place(settings.device, settings.link)
    on_card = placement.card is not None
    require_supported(settings.precision)
    policy = check_policy(settings.policy)
    checkpoint = at_precision(open_checkpoint(path, on_card), settings.precision)
    config = checkpoint.config
    context_length = context_for(config, settings.context_length)
    found.model = describe_model(settings.model, path, "chosen").to_dict()
    found.expert = expert_shape(checkpoint.index.params(0), config.get_text_config().hidden_size)
    needs = footprint(config, checkpoint.index, context_length, on_card)
    plan = placement.plan(needs, settings.budget, settings.link)
    found.plan = plan.to_dict()
    found.decisions += [
        f"The context holds {context_length} tokens, which takes {format_bytes(plan.near_bytes_kv)}.",
        *(reason for reason in plan.reasons if reason not in found.decisions),
        _policy_words(policy),
    ]
    found.warnings += plan.warnings


def _policy_words(policy: str) -> str:
    from engine.cache.policy_choice import AUTO

    if policy != AUTO:
        return f"Experts leave the cache by the policy {policy}."
    return (
        "Where a predictor was trained for the model and experts come over a link, or from a disk that does not fit "
        "into RAM, they are loaded and leave by what it predicts, as long as that pays; else they leave by whichever "
        "plain policy has hit most lately."
    )


def _examine_disk(found: Diagnosis, model: Path | None) -> None:
    folder = model or _existing(models_dir())
    found.disk = {"folder": str(folder), "free_bytes": shutil.disk_usage(folder).free}


def _examine_speeds(found: Diagnosis, model: Path | None, link: str, on_progress: Progress, refresh: bool) -> None:
    """Measured on the model's largest file, or on a temporary one where it will be."""
    from engine.hardware.expert_probe import TYPICAL_EXPERT
    from engine.hardware.speed_cache import machine_speeds
    from engine.lab.page_cache import weight_files

    if found.device is None:
        return
    files = weight_files(model) if model else []
    place = max(files, key=lambda file: file.stat().st_size) if files else _existing(models_dir())
    speeds = machine_speeds(found.machine, found.device, found.expert or TYPICAL_EXPERT, place, on_progress, refresh)
    found.speeds = speeds
    found.warnings += speeds.notes
    if speeds.disk is not None:
        found.disk["speed"] = speeds.disk.to_dict()
    if found.plan is not None and found.plan["expert_share"] < 1 and not link.startswith("emulated"):
        found.decisions.append(_price_of_a_miss(speeds))


def _price_of_a_miss(speeds: MachineSpeeds) -> str:
    """What an expert costs that is not where it is computed."""
    computed = f"computing it on the processor takes {1000 * speeds.expert_seconds:.1f} ms"
    copied = f"{1000 * speeds.expert_bytes / speeds.copy.alone:.1f} ms from RAM"
    ways = [copied] if speeds.device != "cpu" else []
    if speeds.disk is not None:
        ways.append(f"{1000 * speeds.expert_bytes / speeds.disk.best_bytes_per_second:.1f} ms from disk")
    size = format_bytes(speeds.expert_bytes)
    arrives = f"takes {' and '.join(ways)} to arrive" if ways else "arrives at a speed that is not known"
    return f"An expert ({size}) {arrives}; {computed}."


def _existing(folder: Path) -> Path:
    """The folder or the nearest one above it that exists."""
    return folder if folder.is_dir() else _existing(folder.parent)
