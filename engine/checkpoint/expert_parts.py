"""Which bytes of the checkpoint each expert of a layer is made of; incomplete lists of experts are named here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from engine.checkpoint.safetensors_header import TensorLocation
from engine.checkpoint.skeleton import ExpertsModule
from engine.checkpoint.weight_groups import WeightGroup
from engine.errors import CheckpointCorrupt, UnsupportedModel

COMPUTABLE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DOWNLOAD_AGAIN = "Download the model again."


class ExpertPart(NamedTuple):
    """The bytes that each expert of a layer takes from one source pattern.

    `files` and `offsets` have one entry per expert; `shape` is that of the tensor the converter is given for one
    expert (a slice of a tensor that fuses all experts keeps its leading 1).
    """

    pattern: str
    files: np.ndarray
    offsets: np.ndarray
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def collect_parts(
    experts: ExpertsModule, groups: Mapping[str, WeightGroup]
) -> Iterator[tuple[WeightGroup, tuple[ExpertPart, ...]]]:
    """The weight groups that fill the parameters of one experts module, each with its parts.

    Raises CheckpointCorrupt (an expert's tensor is missing or has another shape than the others'),
    UnsupportedModel (a type that cannot be computed with, experts of several modules in one list).
    """
    filled: set[str] = set()
    for name in experts.shapes:
        group = groups.get(f"{experts.name}.{name}")
        if group is None:
            continue
        _refuse_many_to_many(experts, group)
        filled.update(group.targets())
        parts = tuple(_part(experts, group, pattern) for pattern in _patterns_in_order(group))
        _check_one_dtype(experts, parts)
        yield group, parts
    missing = [name for name in experts.shapes if f"{experts.name}.{name}" not in filled]
    if missing:
        raise CheckpointCorrupt(
            f"The checkpoint has no tensors for {experts.name}.{missing[0]}.",
            DOWNLOAD_AGAIN,
        )


def _patterns_in_order(group: WeightGroup) -> list[str]:
    wanted = group.converter.source_patterns if group.converter is not None else list(group.sources)
    return [pattern for pattern in wanted if pattern in group.sources]


def _refuse_many_to_many(experts: ExpertsModule, group: WeightGroup) -> None:
    if group.converter is not None and any(op.supports_many_to_many for op in group.converter.operations):
        raise UnsupportedModel(
            f"The checkpoint mixes the experts of several modules in one list ({experts.name}), "
            "so that one expert cannot be read alone.",
            "Use a text-only Mixture-of-Experts model.",
        )


def _part(experts: ExpertsModule, group: WeightGroup, pattern: str) -> ExpertPart:
    tensors = group.sources[pattern]
    first = tensors[0][1]
    expected = experts.module.get_parameter(group.target.rpartition(".")[2]).dtype
    if first.dtype not in ((torch.uint8,) if expected == torch.uint8 else COMPUTABLE_DTYPES):
        raise UnsupportedModel(
            f"Experts stored as {first.dtype} ({tensors[0][0]}) cannot be used by this version.",
            "Use a float32, float16 or bfloat16 version of the model.",
        )
    if group.converter is not None and "*" in pattern:
        return _part_of_list(experts, pattern, tensors)
    return _part_of_fused(experts, pattern, *tensors[0])


def _part_of_list(experts: ExpertsModule, pattern: str, tensors: list[tuple[str, TensorLocation]]) -> ExpertPart:
    _check_all_there(experts, [key for key, _ in tensors])
    first = tensors[0][1]
    for key, location in tensors:
        if (location.shape, location.dtype) != (first.shape, first.dtype):
            raise CheckpointCorrupt(
                f"Tensor {key} is {location.dtype} {location.shape}; "
                f"the other experts have {first.dtype} {first.shape}.",
                DOWNLOAD_AGAIN,
            )
    files = np.array([location.file for _, location in tensors], dtype=np.int32)
    offsets = np.array([location.offset for _, location in tensors], dtype=np.int64)
    return ExpertPart(pattern, files, offsets, first.nbytes, first.dtype, first.shape)


def _part_of_fused(experts: ExpertsModule, pattern: str, key: str, location: TensorLocation) -> ExpertPart:
    if not location.shape or location.shape[0] != experts.count:
        raise CheckpointCorrupt(
            f"Tensor {key} has shape {location.shape}, but {experts.name} has {experts.count} experts.",
            "Check that config.json belongs to these weights.",
        )
    nbytes = location.nbytes // experts.count
    files = np.full(experts.count, location.file, dtype=np.int32)
    offsets = location.offset + nbytes * np.arange(experts.count, dtype=np.int64)
    return ExpertPart(pattern, files, offsets, nbytes, location.dtype, (1, *location.shape[1:]))


def _check_all_there(experts: ExpertsModule, keys: list[str]) -> None:
    """The list must hold experts 0 .. n-1 in order; names the first that is missing."""
    if len(keys) == experts.count == 1:
        return
    rows = [key.split(".") for key in keys]
    columns = [i for i, values in enumerate(zip(*rows, strict=False)) if len(set(values)) > 1]
    column = next((i for i in columns if all(row[i].isdigit() for row in rows)), None)
    found = [int(row[column]) for row in rows] if column is not None else []
    if found == list(range(experts.count)):
        return
    absent = sorted(set(range(experts.count)) - set(found))
    if column is not None and absent:
        name = ".".join([*rows[0][:column], str(absent[0]), *rows[0][column + 1 :]])
        raise CheckpointCorrupt(f"Tensor {name} is missing from the checkpoint.", DOWNLOAD_AGAIN)
    raise CheckpointCorrupt(
        f"{experts.name} should have {experts.count} experts, the checkpoint has {len(keys)} (first: {keys[0]}).",
        "Check that config.json belongs to these weights.",
    )


def _check_one_dtype(experts: ExpertsModule, parts: tuple[ExpertPart, ...]) -> None:
    if len({part.dtype for part in parts}) > 1:
        raise UnsupportedModel(
            f"{experts.name} mixes {' and '.join(sorted({str(part.dtype) for part in parts}))} in one parameter.",
            "Use a version of the model in one floating-point type.",
        )
