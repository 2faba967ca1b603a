"""What `doctor` finds: the machine, its disk, the libraries, the model and its memory plan, and why."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.terminal_progress import Progress
from engine.errors import EngineError
from engine.hardware.machine import Machine, survey_machine, usable_cpu_threads
from engine.hardware.memory_plan import format_bytes
from engine.paths import models_dir


@dataclass
class Diagnosis:
    """Filled step by step; `error` is what keeps the chosen model from running, if anything does."""

    machine: Machine
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
            "disk": self.disk,
            "computation": self.computation,
            "model": self.model,
            "plan": self.plan,
            "decisions": self.decisions,
            "warnings": self.warnings,
            "error": self.error and {"cause": self.error.cause, "remedy": self.error.remedy},
        }


def diagnose(settings: Settings, on_progress: Progress) -> Diagnosis:
    """Looks at everything; builds, loads and changes nothing. Takes a few seconds, most of them for imports."""
    on_progress("Looking at the machine", 0, 0)
    found = Diagnosis(survey_machine())
    found.decisions.append(found.machine.survey.explanation)
    on_progress("Importing libraries", 0, 0)
    _examine_computation(found)
    on_progress("Reading the model's headers", 0, 0)
    path = _examine_model(found, settings)
    on_progress("Measuring the disk", 0, 0)
    _examine_disk(found, path, settings.link)
    return found


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

    try:
        path = find_model(settings.model)
        if path is None:
            found.warnings.append("The built-in model is not built yet; the first start builds it.")
            return None
        _plan(found, settings, path)
        return path
    except EngineError as error:
        found.error = error
        return None


def _plan(found: Diagnosis, settings: Settings, path: Path) -> None:
    from engine.cache.policy_choice import check_policy
    from engine.card_emulation import plan_memory
    from engine.checkpoint.catalog import describe_model
    from engine.checkpoint.dense_model import open_checkpoint
    from engine.loading import at_precision, context_for, require_supported
    from engine.model.footprint import footprint
    from engine.placement import place

    place(settings.device, "auto")
    require_supported(settings.precision)
    policy = check_policy(settings.policy)
    checkpoint = at_precision(open_checkpoint(path), settings.precision)
    config = checkpoint.config
    context_length = context_for(config, settings.context_length)
    found.model = describe_model(settings.model, path, "chosen").to_dict()
    needs = footprint(config, checkpoint.index, context_length)
    plan = plan_memory(needs, settings.budget, settings.link)
    found.plan = plan.to_dict()
    found.decisions += [
        f"The context holds {context_length} tokens, which takes {format_bytes(plan.near_bytes_kv)}.",
        *plan.reasons,
        _policy_words(policy),
    ]
    found.warnings += plan.warnings


def _policy_words(policy: str) -> str:
    from engine.cache.policy_choice import AUTO

    if policy != AUTO:
        return f"Experts leave the cache by the policy {policy}."
    return (
        "Where a predictor was trained for the model, experts are loaded and leave by what it predicts, as long as "
        "that pays; else they leave by whichever plain policy has hit most lately."
    )


def _examine_disk(found: Diagnosis, model: Path | None, link: str) -> None:
    from engine.hardware.disk_probe import probe_file, probe_folder
    from engine.lab.page_cache import weight_files

    folder = model or _existing(models_dir())
    found.disk = {"folder": str(folder), "free_bytes": shutil.disk_usage(folder).free}
    try:
        if model is None:
            probe = probe_folder(folder)
        else:
            probe = probe_file(max(weight_files(model), key=lambda file: file.stat().st_size))
    except (OSError, ValueError) as error:
        found.warnings.append(f"The disk's speed could not be measured: {error}.")
        return
    found.disk["speed"] = probe.to_dict()
    if found.plan is not None and found.plan["expert_share"] < 1 and not link.startswith("emulated"):
        seconds = found.plan["slot_bytes"] / probe.best_bytes_per_second
        found.decisions.append(
            f"Experts wait on disk and are read at {format_bytes(int(probe.best_bytes_per_second))} a second: "
            f"{1000 * seconds:.1f} ms for one."
        )


def _existing(folder: Path) -> Path:
    """The folder or the nearest one above it that exists."""
    return folder if folder.is_dir() else _existing(folder.parent)
