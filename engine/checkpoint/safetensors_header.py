"""Where every tensor of a checkpoint lies: the headers of its safetensors shards, read without their data."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from engine.checkpoint.weight_formats import OTHER_SUFFIXES, refuse_other_formats
from engine.errors import CheckpointCorrupt, CheckpointUnreadable, ModelNotFound, UnsupportedModel

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
LENGTH_FIELD_BYTES = 8
LARGEST_HEADER_BYTES = 100_000_000  # the format's own limit

DOWNLOAD_AGAIN = "Copy or download this file again."

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class TensorLocation(NamedTuple):
    """Bytes `[offset, offset + nbytes)` of file number `file` hold this tensor, row-major."""

    file: int
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class CheckpointTensors:
    """All tensors of a checkpoint by name; `TensorLocation.file` counts in `files`."""

    files: tuple[Path, ...]
    tensors: dict[str, TensorLocation]

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read_checkpoint_headers(path: Path) -> CheckpointTensors:
    """Read and check the headers of all shards in the folder `path`.

    Raises ModelNotFound (no such folder), UnsupportedModel (weights, but not as safetensors),
    CheckpointUnreadable (a file cannot be opened), CheckpointCorrupt (truncated file, senseless header,
    shard or tensor missing or there twice).
    """
    if not path.is_dir():
        raise ModelNotFound(f"There is no model folder {path}.", "Check the path, or list the models on this machine.")
    promised = _read_weight_map(path)
    names = sorted(set(promised.values())) if promised else [_single_file_name(path)]
    files = tuple(path / name for name in names)
    return join_shards(files, [_read_file_header(file, number) for number, file in enumerate(files)], promised)


def join_shards(
    files: tuple[Path, ...], shards: Sequence[Mapping[str, TensorLocation]], promised: Mapping[str, str]
) -> CheckpointTensors:
    """One checkpoint from its shards' tensors; `promised` is the weight map of the index, if there is one.

    Raises CheckpointCorrupt (a tensor missing or there twice).
    """
    tensors: dict[str, TensorLocation] = {}
    for file, shard in zip(files, shards, strict=True):
        for name, location in shard.items():
            if name in tensors:
                first = files[tensors[name].file].name
                raise CheckpointCorrupt(
                    f"Tensor {name} is in {file.name} and in {first}.",
                    "Remove the shards that do not belong to this checkpoint.",
                )
            tensors[name] = location
    for name, file_name in promised.items():
        if name not in tensors:
            raise CheckpointCorrupt(
                f"Tensor {name} is missing from {files[0].parent / file_name}, though {INDEX_NAME} lists it.",
                DOWNLOAD_AGAIN,
            )
    return CheckpointTensors(files, tensors)


def missing_weights(path: Path) -> list[str]:
    """Files of safetensors weights that the folder should hold and does not, as while it is being downloaded.

    Empty where there are weights in another format instead: that is another matter.
    """
    if (path / SINGLE_NAME).exists():
        return []
    if not (path / INDEX_NAME).exists():
        return [SINGLE_NAME] if not any(file.suffix in OTHER_SUFFIXES for file in path.glob("*")) else []
    try:
        shards = parse_weight_map(_read_bytes(path / INDEX_NAME, 0, None))
    except ValueError:
        return [INDEX_NAME]
    return sorted({name for name in shards.values() if not (path / name).exists()})


def _single_file_name(path: Path) -> str:
    if (path / SINGLE_NAME).exists():
        return SINGLE_NAME
    refuse_other_formats(str(path), [file.name for file in path.glob("*")])
    raise CheckpointCorrupt(
        f"{path} holds no weights: neither {SINGLE_NAME} nor {INDEX_NAME} is there.", "Download the model again."
    )


def _read_weight_map(path: Path) -> dict[str, str]:
    """Tensor name to shard file name, as `model.safetensors.index.json` says; empty where there is no such file."""
    index = path / INDEX_NAME
    if (path / SINGLE_NAME).exists() or not index.exists():
        return {}
    try:
        shards = parse_weight_map(_read_bytes(index, 0, None))
    except ValueError as error:
        raise CheckpointCorrupt(f"{index} {error}.", DOWNLOAD_AGAIN) from error
    for name in sorted(set(shards.values())):
        if not (path / name).exists():
            raise CheckpointCorrupt(f"Shard {path / name} is missing, though {INDEX_NAME} lists it.", DOWNLOAD_AGAIN)
    return shards


def parse_weight_map(raw: bytes) -> dict[str, str]:
    """Tensor name to shard file name, from the content of an index file. Raises ValueError saying what it "is"."""
    try:
        shards = dict(json.loads(raw)["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is not a list of shards ({error})") from error
    for name in sorted({str(name) for name in shards.values()}):
        if Path(name).name != name:
            raise ValueError(f"names a shard outside its folder: {name}")
    return shards


def _read_bytes(file: Path, offset: int, nbytes: int | None) -> bytes:
    try:
        with open(file, "rb") as stream:
            stream.seek(offset)
            return stream.read() if nbytes is None else stream.read(nbytes)
    except OSError as error:
        raise CheckpointUnreadable(
            f"{file} cannot be read ({error.strerror or error}).", "Check its permissions and the disk it is on."
        ) from error


def _read_file_header(file: Path, number: int) -> dict[str, TensorLocation]:
    start = _read_bytes(file, 0, LENGTH_FIELD_BYTES)
    file_bytes = file.stat().st_size
    if len(start) < LENGTH_FIELD_BYTES:
        _corrupt(file, f"has {file_bytes} bytes, too few for a header")
    (header_bytes,) = struct.unpack("<Q", start)
    if header_bytes > LARGEST_HEADER_BYTES:
        _corrupt(file, f"is not a safetensors file: it claims a header of {header_bytes} bytes")
    data_start = LENGTH_FIELD_BYTES + header_bytes
    if data_start > file_bytes:
        _corrupt(file, f"is truncated: its header needs {data_start} bytes, the file has {file_bytes}")
    header = _parse_header(file, _read_bytes(file, LENGTH_FIELD_BYTES, header_bytes))
    tensors = locate_tensors(file, number, header, data_start)
    expected_bytes = max((t.offset + t.nbytes for t in tensors.values()), default=data_start)
    if expected_bytes > file_bytes:
        _corrupt(file, f"is truncated: expected {expected_bytes} bytes, found {file_bytes}")
    return tensors


def locate_tensors(file: Path, number: int, header: Mapping[str, Any], data_start: int) -> dict[str, TensorLocation]:
    """The tensors of shard `number`, whose data begins at byte `data_start`, from the entries of its header.

    Raises CheckpointCorrupt (an entry that makes no sense), UnsupportedModel (an unknown dtype).
    """
    return {name: _locate(file, number, name, entry, data_start) for name, entry in header.items()}


def _parse_header(file: Path, raw: bytes) -> dict[str, Any]:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            _corrupt(file, "lists a tensor twice in its header")
        return entries

    try:
        header = json.loads(raw, object_pairs_hook=without_repeats)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        _corrupt(file, "has a header that is not a JSON object")
    header.pop("__metadata__", None)
    return header


def _locate(file: Path, number: int, name: str, entry: Any, data_start: int) -> TensorLocation:
    try:
        dtype_name, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sane = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)) and begin <= end
    except (KeyError, TypeError, ValueError):
        sane = False
    if not sane:
        _corrupt(file, f"has a header that makes no sense for tensor {name}")
    if dtype_name not in DTYPES:
        raise UnsupportedModel(
            f"Tensor {name} is stored as {dtype_name}, which this version cannot read.",
            "Use a float32, float16 or bfloat16 version of the model.",
        )
    dtype = DTYPES[dtype_name]
    if prod(shape) * dtype.itemsize != end - begin:
        _corrupt(
            file, f"gives tensor {name} {end - begin} bytes, its shape {shape} needs {prod(shape) * dtype.itemsize}"
        )
    return TensorLocation(number, data_start + begin, end - begin, dtype, tuple(shape))


def _corrupt(file: Path, what: str) -> NoReturn:
    if not file.exists() or os.path.isdir(file):
        raise CheckpointUnreadable(f"{file} is not a file.", DOWNLOAD_AGAIN)
    raise CheckpointCorrupt(f"{file} {what}.", DOWNLOAD_AGAIN)
