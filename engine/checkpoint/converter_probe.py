"""What a converter does to the bytes of one expert, found out by letting it convert small tensors of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from math import gcd, prod
from typing import Any

import numpy as np
import torch

from engine.checkpoint.expert_parts import DOWNLOAD_AGAIN, ExpertPart
from engine.checkpoint.skeleton import ExpertsModule
from engine.checkpoint.weight_groups import WeightGroup
from engine.errors import CheckpointCorrupt, UnsupportedModel

SMALLEST_PROBE_DIMENSION = 4  # large enough that a transposition or an interleaving shows


class ParamShapes:
    """Stands in for the model in conversion operations that ask for a parameter's shape."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def get_parameter(self, name: str) -> torch.Tensor:
        return torch.empty(self._shapes[name.rpartition(".")[2]], device="meta")


class ConverterProbe:
    """Asks converters what they do, and remembers the answers: layers of a model ask the same again and again."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._answers: dict[Any, dict[str, list[int]] | None] = {}

    def order_of_parts(
        self,
        experts: ExpertsModule,
        group: WeightGroup,
        parts: tuple[ExpertPart, ...],
        shapes: dict[str, tuple[int, ...]],
    ) -> dict[str, list[int]] | None:
        """For each parameter the parts (by number) whose bytes, one after the other, are the parameter.

        None where the converter puts the bytes in another order. `shapes` are those of one expert's parameters,
        with a leading 1. Raises CheckpointCorrupt (shapes that do not fit), UnsupportedModel (arithmetic).
        """
        if group.converter is None:  # one tensor, as it is
            if [part.shape for part in parts] != list(shapes.values()):
                _refuse_shapes(experts, group, parts, shapes)
            return {name: [0] for name in shapes}
        question = (id(group.converter), tuple((p.pattern, p.shape) for p in parts), tuple(shapes.items()))
        if question not in self._answers:
            self._answers[question] = _probe(experts, group, parts, shapes, self._config)
        return self._answers[question]


def _probe(
    experts: ExpertsModule,
    group: WeightGroup,
    parts: tuple[ExpertPart, ...],
    shapes: dict[str, tuple[int, ...]],
    config: Any,
) -> dict[str, list[int]] | None:
    """Lets the converter convert small tensors of consecutive numbers and looks where the numbers went."""
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
        results = {leaf(name): tensor for name, tensor in converted.items()}
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


def leaf(name: str) -> str:
    """The parameter's own name, without its module's."""
    return name.rpartition(".")[2]
