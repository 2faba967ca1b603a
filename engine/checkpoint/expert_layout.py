"""Where the bytes of one expert lie on disk and where they go in a slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np
import torch

from engine.checkpoint.safetensors_header import TensorLocation
from engine.checkpoint.skeleton import ExpertsModule
from engine.checkpoint.weight_groups import WeightGroup
from engine.errors import CheckpointCorrupt, UnsupportedModel

PARAM_ALIGNMENT_BYTES = 64
SMALLEST_PROBE_DIMENSION = 4  # large enough that a transposition or an interleaving shows
COMPUTABLE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DOWNLOAD_AGAIN = "Download the model again."


@dataclass(frozen=True)
class ExpertParam:
    """One parameter of one expert inside a slot; `shape` has no leading expert dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset_bytes: int
    nbytes: int


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


class ParamShapes:
    """Stands in for the model in conversion operations that ask for a parameter's shape."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def get_parameter(self, name: str) -> torch.Tensor:
        return torch.empty(self._shapes[name.rpartition(".")[2]], device="meta")


@dataclass(frozen=True)
class GroupLayout:
    """Parts of one weight group, the parameters they become, and how.

    Where `direct`, bytes as they lie on disk, part after part, are the parameters' bytes. Else the parts are read
    to the start of the group's region of the slot, and `reorder` puts the parameters in their place.
    """

    group: WeightGroup
    parts: tuple[ExpertPart, ...]
    part_offsets: tuple[int, ...]
    params: tuple[ExpertParam, ...]
    direct: bool

    def reorder(self, slot: np.ndarray, config: Any) -> None:
        """Turn the raw parts in `slot` (uint8) into the parameters, with the converter's own operations."""
        raw: dict[str, list[torch.Tensor]] = {}
        for part, offset in zip(self.parts, self.part_offsets, strict=True):
            piece = torch.from_numpy(slot[offset : offset + part.nbytes].copy())
            raw[part.pattern] = [piece.view(part.dtype).view(part.shape)]
        shapes = ParamShapes({param.name: (1, *param.shape) for param in self.params})
        converted = {_leaf(name): tensor for name, tensor in self.group.convert(raw, shapes, config).items()}
        for param in self.params:
            place = slot[param.offset_bytes : param.offset_bytes + param.nbytes]
            torch.from_numpy(place).copy_(converted[param.name].contiguous().view(torch.uint8).view(-1))


def lay_out_layer(
    experts: ExpertsModule, groups: Mapping[str, WeightGroup], config: Any, probes: dict[Any, Any]
) -> tuple[GroupLayout, ...]:
    """Plan one layer's slots: parameters in the order of their bytes on disk, so that ranges merge.

    `probes` remembers what converters do to shapes seen before; share one dict between layers.
    """
    collected = list(_collect(experts, groups))
    collected.sort(key=lambda item: (int(item[1][0].files[0]), min(int(part.offsets[0]) for part in item[1])))
    layouts, end = [], 0
    for group, parts in collected:
        names = [_leaf(target) for target in group.targets()]
        shapes = {name: (1, *experts.shapes[name][1:]) for name in names}
        order = _probe_cached(experts, group, parts, shapes, config, probes)
        layout, end = _place(group, parts, shapes, order, end)
        layouts.append(layout)
    return tuple(layouts)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _collect(
    experts: ExpertsModule, groups: Mapping[str, WeightGroup]
) -> Iterator[tuple[WeightGroup, tuple[ExpertPart, ...]]]:
    filled: set[str] = set()
    for name in experts.shapes:
        group = groups.get(f"{experts.name}.{name}")
        if group is None:
            continue
        _refuse_many_to_many(experts, group)
        filled.update(group.targets())
        yield group, tuple(_part(experts, group, pattern) for pattern in _patterns_in_order(group))
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
    if first.dtype not in COMPUTABLE_DTYPES:
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


def _probe_cached(
    experts: ExpertsModule,
    group: WeightGroup,
    parts: tuple[ExpertPart, ...],
    shapes: dict[str, tuple[int, ...]],
    config: Any,
    probes: dict[Any, Any],
) -> dict[str, list[int]] | None:
    signature = (id(group.converter), tuple((p.pattern, p.shape, p.dtype) for p in parts), tuple(shapes.items()))
    if signature not in probes:
        _check_one_dtype(experts, parts)
        probes[signature] = _probe(experts, group, parts, shapes, config)
    return probes[signature]


def _check_one_dtype(experts: ExpertsModule, parts: tuple[ExpertPart, ...]) -> None:
    if len({part.dtype for part in parts}) > 1:
        raise UnsupportedModel(
            f"{experts.name} mixes {' and '.join(sorted({str(part.dtype) for part in parts}))} in one parameter.",
            "Use a version of the model in one floating-point type.",
        )


def _probe(
    experts: ExpertsModule,
    group: WeightGroup,
    parts: tuple[ExpertPart, ...],
    shapes: dict[str, tuple[int, ...]],
    config: Any,
) -> dict[str, list[int]] | None:
    """What the converter does to one expert, found out on small tensors of consecutive numbers.

    Returns for each parameter the parts whose bytes, one after the other, are the parameter; None where the
    numbers come out in another order.
    """
    scale = _probe_scale(parts, shapes)
    starts, inputs, count = [], {}, 0
    for part in parts:
        shape = scale(part.shape)
        starts.append(count)
        inputs[part.pattern] = [torch.arange(count, count + prod(shape), dtype=torch.float64).view(shape)]
        count += prod(shape)
    small_shapes = {name: scale(shape) for name, shape in shapes.items()}
    try:
        converted = group.convert(inputs, ParamShapes(small_shapes), config)
        results = {_leaf(name): tensor for name, tensor in converted.items()}
        fits = all(tuple(results[name].shape) == shape for name, shape in small_shapes.items())
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError):
        fits = False
    if not fits:
        _refuse_shapes(experts, group, parts, shapes)
    numbers = {name: results[name].reshape(-1) for name in shapes}
    if not torch.equal(torch.cat(list(numbers.values())).sort().values, torch.arange(count, dtype=torch.float64)):
        raise UnsupportedModel(
            f"The weights of {experts.name} are not stored as plain numbers but need arithmetic while loading.",
            "Use a float32, float16 or bfloat16 version of the model.",
        )
    sizes = np.diff([*starts, count]).tolist()
    orders = {name: _whole_parts(flat, starts, sizes) for name, flat in numbers.items()}
    if any(order is None for order in orders.values()):
        return None
    return {name: order for name, order in orders.items() if order is not None}


def _probe_scale(parts: tuple[ExpertPart, ...], shapes: dict[str, tuple[int, ...]]) -> Any:
    """Shrinks shapes while it keeps the ratios between all dimensions (a leading 1 stays)."""
    dimensions = [n for shape in (*(p.shape for p in parts), *shapes.values()) for n in shape if n > 1]
    common = reduce(gcd, dimensions, 0) or 1
    factor = min(common, SMALLEST_PROBE_DIMENSION)
    return lambda shape: tuple(n if n <= 1 else n // common * factor for n in shape)


def _whole_parts(flat: torch.Tensor, starts: list[int], sizes: list[int]) -> list[int] | None:
    """Indices of the parts that `flat` strings together unchanged, or None."""
    order, position = [], 0
    while position < len(flat):
        first = int(flat[position])
        if first not in starts:
            return None
        part = starts.index(first)
        piece = flat[position : position + sizes[part]]
        if not torch.equal(piece, torch.arange(first, first + sizes[part], dtype=flat.dtype)):
            return None
        order.append(part)
        position += sizes[part]
    return order


def _refuse_shapes(
    experts: ExpertsModule,
    group: WeightGroup,
    parts: tuple[ExpertPart, ...],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    wanted = ", ".join(f"{name} {shape[1:]}" for name, shape in shapes.items())
    absent = [p for p in (group.converter.source_patterns if group.converter else []) if p not in group.sources]
    if absent:
        raise CheckpointCorrupt(
            f"Tensors {' and '.join(absent)} of {experts.name} are missing from the checkpoint.", DOWNLOAD_AGAIN
        )
    found = ", ".join(str(part.shape) for part in parts)
    raise CheckpointCorrupt(
        f"The tensors of {experts.name} have shapes {found}; the config asks for {wanted}.",
        "Check that config.json belongs to these weights.",
    )


def _place(
    group: WeightGroup,
    parts: tuple[ExpertPart, ...],
    shapes: dict[str, tuple[int, ...]],
    order: dict[str, list[int]] | None,
    start: int,
) -> tuple[GroupLayout, int]:
    """Give the group's parameters and parts their places in the slot from `start` on; also the end of its region."""
    dtype = parts[0].dtype
    params, part_offsets = [], [0] * len(parts)
    region = end = _aligned(start)
    for name, shape in shapes.items():
        nbytes = prod(shape) * dtype.itemsize
        offset = _aligned(end)
        params.append(ExpertParam(name, shape[1:], dtype, offset, nbytes))
        end = offset + nbytes
        for number in order[name] if order is not None else ():
            part_offsets[number] = offset
            offset += parts[number].nbytes
    if order is None:
        for number, part in enumerate(parts):
            part_offsets[number] = region
            region += part.nbytes
    rule = WeightGroup(group.target, group.converter)  # without the list of tensors, which is long
    return GroupLayout(rule, parts, tuple(part_offsets), tuple(params), order is not None), end


def _aligned(offset: int) -> int:
    return -(-offset // PARAM_ALIGNMENT_BYTES) * PARAM_ALIGNMENT_BYTES
