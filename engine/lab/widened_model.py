"""A checkpoint larger than memory that says what a trained model says: its experts with neurons that are zero.

Routers, streams and answers stay those of the trained model to the bit, so routing is real; only the bytes grow.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from engine.checkpoint.safetensors_header import INDEX_NAME, CheckpointTensors, TensorLocation, read_checkpoint_headers
from engine.checkpoint.tensor_reader import TensorReader
from engine.errors import DiskFull, UnsupportedModel
from engine.hardware.memory_plan import format_bytes

STAGE = "Writing a model larger than memory"
_WIDTHS = ("moe_intermediate_size", "intermediate_size")  # of an expert, the first that the config has
_KEPT = ("*.json", "*.jinja", "*.model", "*.txt")
_FILE_BYTES = 1 << 30  # of tensors before they are widened
Progress = Callable[[str, int, int], None]


def widen_experts(path: Path, out: Path, times: int, on_progress: Progress | None = None) -> Path:
    """Writes the model in `path`, its experts `times` as wide, to `out`, where it is complete or not at all.

    Raises DiskFull beforehand, UnsupportedModel where experts are not matrices of their own in the files.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    width_name = next((name for name in _WIDTHS if name in config), None)
    checkpoint = read_checkpoint_headers(path)
    experts = [name for name in checkpoint.tensors if ".experts." in name]
    if width_name is None or not experts or any(len(checkpoint.tensors[name].shape) != 2 for name in experts):
        raise UnsupportedModel(f"The experts of {path} cannot be widened.", "Use the built-in model.")
    _require_room(times * checkpoint.total_bytes, out.parent)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        _write(checkpoint, partial, config[width_name], times, on_progress)
        _describe(path, partial, config | {width_name: times * config[width_name]})
        shutil.rmtree(out, ignore_errors=True)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _write(checkpoint: CheckpointTensors, out: Path, width: int, times: int, on_progress: Progress | None) -> None:
    places: dict[str, str] = {}
    with TensorReader(checkpoint.files) as reader:
        for number, names in enumerate(_in_files(checkpoint, times)):
            file, tensors = f"model-{number:05d}.safetensors", {}
            for name in names:
                place = checkpoint.tensors[name]
                tensor = reader.read(place, place.dtype)
                tensors[name] = _widened(tensor, width, times) if ".experts." in name else tensor
            save_file(tensors, out / file, metadata={"format": "pt"})
            places |= dict.fromkeys(names, file)
            if on_progress is not None:
                on_progress(STAGE, len(places), len(checkpoint.tensors))
    (out / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")


def _in_files(checkpoint: CheckpointTensors, times: int) -> Iterator[list[str]]:
    """Names in the order they lie in, a new list whenever the widened tensors would fill a file."""
    names: list[str] = []
    held = 0
    for name, place in sorted(checkpoint.tensors.items(), key=_position):
        if names and held + place.nbytes * times > _FILE_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += place.nbytes * times
    yield names


def _position(item: tuple[str, TensorLocation]) -> tuple[int, int]:
    return item[1].file, item[1].offset


def _widened(matrix: torch.Tensor, width: int, times: int) -> torch.Tensor:
    """Zeros appended where the matrix is `width` long: rows of the first two matrices, columns of the last."""
    shape = [side * times if side == width else side for side in matrix.shape]
    wide = matrix.new_zeros(shape)
    wide[: matrix.shape[0], : matrix.shape[1]] = matrix
    return wide


def _describe(path: Path, out: Path, config: dict[str, Any]) -> None:
    for pattern in _KEPT:
        for file in path.glob(pattern):
            if not file.name.endswith((".index.json", "expertflow-build.json")):
                shutil.copy2(file, out / file.name)
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _require_room(needed: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            f"The model would take {format_bytes(needed)} and {format_bytes(free)} are free in {folder}.",
            "Free some room, or ask for less wide experts.",
        )
