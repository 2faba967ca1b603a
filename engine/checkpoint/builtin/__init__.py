"""The built-in model: real text and real routing, nothing to download; carved out of a packaged dense model."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from engine.checkpoint.builder_lock import builder_lock
from engine.checkpoint.builtin.builder import BUILDING_PREFIX, Progress, build
from engine.checkpoint.builtin.dense import DenseWeights, dense_gguf_path
from engine.checkpoint.builtin.manifest import matches_manifest
from engine.checkpoint.builtin.recipe import load_recipe
from engine.errors import BuildFailed
from engine.paths import models_dir

__all__ = ["BUILTIN_NAME", "builtin_path", "ensure_builtin", "is_complete"]

BUILTIN_NAME = "demo"
LOCK_NAME = f".{BUILTIN_NAME}.lock"


def builtin_path() -> Path:
    """Where this version's built-in model is, or will be: its name tells the recipe."""
    return models_dir() / f"{BUILTIN_NAME}-{load_recipe().identity}"


def is_complete(path: Path) -> bool:
    """Whether ``path`` is a finished build: its files are all there, neither truncated nor unwritten."""
    return matches_manifest(path)


def ensure_builtin(on_progress: Progress | None = None) -> Path:
    """The folder of the built-in model, built first if it is missing, damaged or made by another recipe.

    ``on_progress(stage, done, total)`` counts bytes, or is (stage, 0, 0) for a step without a measure. Raises
    BuildFailed (parts are missing, the folder is not writable) and DiskFull.
    """
    report = on_progress or (lambda stage, done, total: None)
    target = builtin_path()
    if is_complete(target):
        return target
    dense_gguf_path()  # raises before anything is removed
    folder = target.parent
    waiting = "waiting for another process that is building the built-in model"
    with builder_lock(folder / LOCK_NAME, waiting, report, partial(_not_writable, folder)):
        if not is_complete(target):
            _remove_replaced(target, report)
            build(target, load_recipe(), DenseWeights(), report)
    return target


def _not_writable(folder: Path, error: OSError) -> BuildFailed:
    return BuildFailed(
        f"the folder for models, {folder}, cannot be written: {error.strerror or error}",
        "make it writable, or set EXPERTFLOW_HOME to another folder",
    )


def _remove_replaced(target: Path, report: Progress) -> None:
    """Clear what a killed build left, a damaged build, and builds by older recipes.

    A build by another recipe that is not older may be in use by another copy of this program: it stays.
    """
    for path in target.parent.glob(f"{BUILDING_PREFIX}{BUILTIN_NAME}-*"):
        shutil.rmtree(path)
    for path in target.parent.glob(f"{BUILTIN_NAME}-v[0-9]*-*"):
        if path == target:
            report(f"replacing the built-in model {path.name}: it is damaged", 0, 0)
        elif _recipe_version(path) < _recipe_version(target):
            report(f"replacing the built-in model {path.name}: an older version of this program made it", 0, 0)
        else:
            continue
        shutil.rmtree(path)


def _recipe_version(path: Path) -> int:
    return int(path.name.removeprefix(f"{BUILTIN_NAME}-v").split("-")[0])
