"""Measured speeds kept for the next start: measuring takes seconds, and a machine seldom changes."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from engine.hardware.device import ChosenDevice
from engine.hardware.expert_probe import ExpertShape
from engine.hardware.machine import Machine
from engine.hardware.machine_speeds import MachineSpeeds, Progress, measure_speeds
from engine.paths import models_dir

FORMAT = 1
_KEPT = 16  # sets of figures: several models, several cards


def speed_file() -> Path:
    """Where figures are kept."""
    return models_dir().parent / "speeds.json"


def machine_speeds(
    machine: Machine,
    device: ChosenDevice,
    shape: ExpertShape,
    place: Path,
    on_progress: Progress | None = None,
    refresh: bool = False,
) -> MachineSpeeds:
    """What was measured here before for this device, expert and disk; measured now where it was not, or to `refresh`.

    A file of figures that cannot be read or written is said in `notes`, and what it should hold is measured again.
    """
    key = _key(fingerprint(machine, device, shape, place))
    kept, complaint = _load()
    known = None if refresh else _recall(kept.get(key))
    if known is not None:
        return known
    if key in kept and not refresh:
        complaint = f"The stored speeds in {speed_file()} make no sense: measured again."
    speeds = measure_speeds(device, shape, place, on_progress)
    problem = _store({**kept, key: speeds.to_dict()}, key)
    return replace(speeds, notes=(*speeds.notes, *(note for note in (complaint, problem) if note)))


def recall_speeds(machine: Machine, device: ChosenDevice, shape: ExpertShape, place: Path) -> MachineSpeeds | None:
    """What was measured before, or None: for who cannot wait for a measurement."""
    return _recall(_load()[0].get(_key(fingerprint(machine, device, shape, place))))


def fingerprint(machine: Machine, device: ChosenDevice, shape: ExpertShape, place: Path) -> dict[str, Any]:
    """All that the figures depend on: other figures are measured when any of it changes."""
    return {
        "format": FORMAT,
        "cpu": machine.cpu,
        "cpu_threads": machine.cpu_threads,
        "system": machine.system,
        "cards": [[gpu.name, gpu.uuid, gpu.pcie_max_generation, gpu.pcie_lanes] for gpu in machine.gpus],
        "driver": machine.survey.driver,
        "device": [device.torch_name, device.name, device.uuid],
        "expert": shape.to_dict(),
        "disk": _disk_of(place),
        "versions": {name: machine.versions.get(name) for name in ("torch", "numba")},
    }


def _key(found: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _disk_of(place: Path) -> list[str]:
    """The device, mount point and kind of the file system that `place` is on."""
    resolved = place.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if resolved.is_relative_to(part.mountpoint)]
    if not mounts:
        return [resolved.anchor]
    nearest = max(mounts, key=lambda part: len(part.mountpoint))
    return [nearest.device, nearest.mountpoint, nearest.fstype]


def _load() -> tuple[dict[str, Any], str | None]:
    """All kept figures by key, and what to say where the file cannot be used."""
    file = speed_file()
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["format"] == FORMAT and isinstance(kept["speeds"], dict):
            return kept["speeds"], None
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return {}, f"The stored speeds in {file} could not be read ({problem}): measured again."
    return {}, f"The stored speeds in {file} are of another version: measured again."


def _recall(kept: Any) -> MachineSpeeds | None:
    try:
        return MachineSpeeds.from_dict(kept)
    except (KeyError, TypeError, ValueError):
        return None


def _store(kept: dict[str, Any], newest: str) -> str | None:
    """Replaces the file as a whole; a sentence where that fails."""
    others = [key for key in kept if key != newest][-(_KEPT - 1) :]
    ordered = {key: kept[key] for key in (*others, newest)}
    file = speed_file()
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"format": FORMAT, "speeds": ordered}, indent=1), encoding="utf-8")
        os.replace(partial, file)
        return None
    except OSError as problem:
        return f"The measured speeds could not be kept for the next start ({problem})."
    finally:
        if partial.exists():
            partial.unlink()
