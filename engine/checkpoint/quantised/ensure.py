"""The quantised experts of a checkpoint: found where an earlier start made them, else made now, whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from engine.checkpoint.builder_lock import builder_lock
from engine.checkpoint.builtin.manifest import flush_folder
from engine.checkpoint.dense_model import OpenedCheckpoint
from engine.checkpoint.expert_index import ExpertIndex, ExpertKey
from engine.checkpoint.quantised.copies import (
    BUILDING_PREFIX,
    DELETING_PREFIX,
    copy_folder,
    list_copies,
    read_manifest,
    remove_folder,
    write_manifest,
)
from engine.checkpoint.quantised.expert_file import file_bytes, write_experts
from engine.checkpoint.quantised.index import QuantisedIndex
from engine.checkpoint.quantised.layout import lay_out_packed
from engine.checkpoint.tensor_reader import TensorReader
from engine.errors import BuildFailed, DiskFull, InvalidSetting

Progress = Callable[[str, int, int], None]

LOCK_NAME = ".lock"
MANIFEST_ROOM_BYTES = 1 << 20


def plan_quantised(checkpoint: OpenedCheckpoint, precision: str) -> QuantisedIndex:
    """The experts of `checkpoint` at "int8" or "nf4", laid out; nothing is read or made but headers.

    Raises InvalidSetting for a checkpoint whose experts are in few bits already.
    """
    native = checkpoint.index
    if native.is_packed:
        raise InvalidSetting(
            f"The experts of {checkpoint.path} are stored in few bits already; {precision} would only lose more.",
            "Use the precision native.",
        )
    layers = tuple(
        lay_out_packed(native.params(layer), precision, experts.module)
        for layer, experts in enumerate(checkpoint.skeleton.experts)
    )
    folder = copy_folder(checkpoint.path, native.files, precision)
    return QuantisedIndex(native, layers, precision, checkpoint.path.resolve(), folder)


def ensure_quantised(index: QuantisedIndex, on_progress: Progress | None = None) -> QuantisedIndex:
    """`index` with its files there: those of an earlier start, or made now, one expert in memory at a time.

    `on_progress(stage, done, total)` counts experts. Raises DiskFull (before
    anything is written, if it can be known), BuildFailed, and what reading the checkpoint raises.
    """
    report = on_progress or (lambda stage, done, total: None)
    if read_manifest(index.folder) is not None:
        return index
    folder = index.folder.parent
    waiting = "Waiting for another process that is quantising experts"
    with builder_lock(folder / LOCK_NAME, waiting, report, partial(_not_writable, folder)):
        if read_manifest(index.folder) is None:
            _require_library(index.precision)
            _build(index, report)
    return index


def _require_library(precision: str) -> None:
    try:
        import bitsandbytes  # noqa: F401 - formats.py uses it, expert by expert
    except (ImportError, OSError, RuntimeError) as error:  # its native part may not fit this machine
        raise BuildFailed(
            f"Experts cannot be made {precision} here: the library bitsandbytes does not start ({error}).",
            "Install the requirements again, or use the precision native.",
        ) from error


def _remove_replaced(index: QuantisedIndex) -> None:
    """Clears what killed builds and deletions left, and copies of an earlier state of the same checkpoint."""
    for pattern in (BUILDING_PREFIX, DELETING_PREFIX):
        for leftover in index.folder.parent.glob(f"{pattern}*"):
            shutil.rmtree(leftover)
    if index.folder.exists():
        remove_folder(index.folder)
    for copy in list_copies():
        if (copy.source, copy.precision) == (index.source, index.precision):
            remove_folder(copy.path)


def _build(index: QuantisedIndex, report: Progress) -> None:
    folder = index.folder.with_name(BUILDING_PREFIX + index.folder.name)
    counts = list(zip(index.layers, index.experts_per_layer, strict=True))
    needed_bytes = sum(file_bytes(count, layer.stride_bytes) for layer, count in counts) + MANIFEST_ROOM_BYTES
    try:
        _remove_replaced(index)
        folder.mkdir()
        if shutil.disk_usage(folder).free < needed_bytes:
            raise _disk_full(folder.parent, needed_bytes)
        with TensorReader(index.native.files) as reader:
            for number, (layer, count) in enumerate(counts):
                experts = _packed_experts(index, number, reader, report)
                write_experts(folder / index.files[number].name, experts, count, layer.stride_bytes)
        write_manifest(folder, index.source, index.precision)
        folder.rename(index.folder)
        flush_folder(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(folder.parent, needed_bytes) from error
        raise _not_writable(folder.parent, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _packed_experts(index: QuantisedIndex, layer: int, reader: TensorReader, report: Progress) -> Iterator[np.ndarray]:
    before, total = sum(index.experts_per_layer[:layer]), sum(index.experts_per_layer)
    slot = np.empty(index.native.slot_bytes, np.uint8)
    for expert in range(index.experts_per_layer[layer]):
        _read_native(index.native, ExpertKey(layer, expert), reader, slot)
        yield index.layers[layer].pack(slot)
        report(f"Quantising the experts to {index.precision} (once)", before + expert + 1, total)


def _read_native(native: ExpertIndex, key: ExpertKey, reader: TensorReader, slot: np.ndarray) -> None:
    for piece in native.ranges(key):
        reader.read_into(slot[piece.slot_offset : piece.slot_offset + piece.nbytes], piece.file, piece.offset)
    native.finish(key, slot)


def _disk_full(folder: Path, needed_bytes: int) -> DiskFull:
    return DiskFull(
        f"The quantised experts need {needed_bytes:,} bytes in {folder}, {shutil.disk_usage(folder).free:,} are free.",
        "Free some space there, or set EXPERTFLOW_HOME to a folder on a larger disk.",
    )


def _not_writable(folder: Path, error: OSError) -> BuildFailed:
    return BuildFailed(
        f"The quantised experts cannot be written to {folder}: {error.strerror or error}.",
        "Make that folder writable, or set EXPERTFLOW_HOME to another one.",
    )
