"""Building the checkpoint in a folder of its own and giving it its name only when it is whole."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from engine.checkpoint.builtin.dense import DenseWeights
from engine.checkpoint.builtin.description import json_bytes, write_description
from engine.checkpoint.builtin.layout import INDEX_NAME, Shard, plan_shards, weight_index
from engine.checkpoint.builtin.manifest import flush_folder, write_manifest
from engine.checkpoint.builtin.recipe import Recipe
from engine.checkpoint.builtin.weights import write_shard
from engine.errors import BuildFailed, DiskFull

Progress = Callable[[str, int, int], None]

BUILDING_PREFIX = ".building-"
SMALL_FILES_BYTES = 16 << 20  # tokenizer, configuration, index, folders
STAGE = "building the built-in model"


def build(target: Path, recipe: Recipe, dense: DenseWeights, on_progress: Progress) -> None:
    """Write the checkpoint to ``target``, which appears whole or not at all. The caller holds the lock.

    Progress counts bytes. Raises DiskFull or BuildFailed; whatever is raised, nothing half-written is left.
    """
    shards = plan_shards(dense, recipe)
    needed_bytes = sum(shard.size_bytes for shard in shards) + SMALL_FILES_BYTES
    folder = target.with_name(BUILDING_PREFIX + target.name)
    try:
        folder.mkdir(parents=True)
        _require_free(folder, needed_bytes)
        _write_files(folder, shards, recipe, dense, on_progress)
        write_manifest(folder, recipe.identity)
        folder.rename(target)
        flush_folder(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(folder, needed_bytes) from error
        raise BuildFailed(
            f"the built-in model cannot be written to {target.parent}: {error.strerror}",
            "make that folder writable, or set EXPERTFLOW_HOME to another one",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder: Path, shards: list[Shard], recipe: Recipe, dense: DenseWeights, on_progress: Progress) -> None:
    total_bytes = sum(shard.data_bytes for shard in shards)
    written_bytes = 0

    def on_written(piece_bytes: int) -> None:
        nonlocal written_bytes
        written_bytes += piece_bytes
        on_progress(STAGE, written_bytes, total_bytes)

    on_progress(STAGE, 0, total_bytes)
    write_description(folder, dense, recipe)
    (folder / INDEX_NAME).write_bytes(json_bytes(weight_index(shards)))
    for shard in shards:
        write_shard(folder / shard.name, shard, dense, recipe, on_written)


def _require_free(folder: Path, needed_bytes: int) -> None:
    if shutil.disk_usage(folder).free < needed_bytes:
        raise _disk_full(folder, needed_bytes)


def _disk_full(folder: Path, needed_bytes: int) -> DiskFull:
    shutil.rmtree(folder, ignore_errors=True)
    free_bytes = shutil.disk_usage(folder.parent).free
    return DiskFull(
        f"the built-in model needs {needed_bytes:,} bytes in {folder.parent}, {free_bytes:,} are free",
        "free some space there, or set EXPERTFLOW_HOME to a folder on a larger disk",
    )
