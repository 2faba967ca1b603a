"""Where the bytes of one expert go in a slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from engine.checkpoint.converter_probe import ConverterProbe, ParamShapes, leaf
from engine.checkpoint.expert_parts import ExpertPart, collect_parts
from engine.checkpoint.skeleton import ExpertsModule
from engine.checkpoint.weight_groups import WeightGroup

PARAM_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class ExpertParam:
    """One parameter of one expert inside a slot; `shape` has no leading expert dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset_bytes: int
    nbytes: int


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
        converted = {leaf(name): tensor for name, tensor in self.group.convert(raw, shapes, config).items()}
        for param in self.params:
            place = slot[param.offset_bytes : param.offset_bytes + param.nbytes]
            torch.from_numpy(place).copy_(converted[param.name].contiguous().view(torch.uint8).view(-1))


def lay_out_layer(
    experts: ExpertsModule, groups: Mapping[str, WeightGroup], probe: ConverterProbe
) -> tuple[GroupLayout, ...]:
    """Plan one layer's slots: parameters in the order of their bytes on disk, so that ranges merge."""
    collected = list(collect_parts(experts, groups))
    collected.sort(key=lambda item: (int(item[1][0].files[0]), min(int(part.offsets[0]) for part in item[1])))
    layouts, end = [], 0
    for group, parts in collected:
        names = [leaf(target) for target in group.targets()]
        shapes = {name: (1, *experts.shapes[name][1:]) for name in names}
        order = probe.order_of_parts(experts, group, parts, shapes)
        layout, end = _place(group, parts, shapes, order, end)
        layouts.append(layout)
    return tuple(layouts)


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
