"""Which checkpoint tensors become which parameter, in transformers' own words.

transformers renames and merges checkpoint tensors while it loads them (`conversion_mapping.py`); this module asks
the same rules the same questions in the same order, but reads nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from engine.checkpoint import mxfp4
from engine.checkpoint.safetensors_header import TensorLocation


@dataclass
class WeightGroup:
    """Tensors that together become the parameter `target` (and its siblings, if the converter has several targets).

    `sources` keeps, for each of the converter's source patterns, the tensors in the order in which the converter
    wants them. Without a converter there is one pattern, `target`, with one tensor.
    """

    target: str
    converter: WeightConverter | None
    sources: dict[str, list[tuple[str, TensorLocation]]] = field(default_factory=dict)

    @property
    def locations(self) -> list[TensorLocation]:
        return [location for tensors in self.sources.values() for _, location in tensors]

    @property
    def nbytes(self) -> int:
        return sum(location.nbytes for location in self.locations)

    def targets(self) -> tuple[str, ...]:
        """All parameters this group fills."""
        if self.converter is None:
            return (self.target,)
        first, *others = self.converter.target_patterns
        return (self.target, *(self.target.replace(first, other) for other in others))

    def convert(self, tensors: dict[str, list[torch.Tensor]], model: Any, config: Any) -> dict[str, torch.Tensor]:
        """Run the converter's own operations: pattern -> tensors in, full parameter name -> tensor out."""
        if self.converter is None:
            return {self.target: next(iter(tensors.values()))[0]}
        converter = copy.copy(self.converter)  # `collected_tensors` is the only state `convert` touches
        converter.collected_tensors = dict(tensors)
        converted = converter.convert(self.target, model=model, config=config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}


def group_weights(model: PreTrainedModel, tensors: Mapping[str, TensorLocation]) -> dict[str, WeightGroup]:
    """Sort checkpoint tensors by the parameter they go to; tensors the model has no place for are left out."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, known = model.base_model_prefix, model.state_dict()
    groups: dict[str, WeightGroup] = {}
    for key in sorted(tensors, key=dot_natural_key):
        target, pattern = rename_source_key(key, renamings, converters, prefix, known)
        if target not in known and key in known:
            target, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=known)
        if target not in known:
            target = mxfp4.parameter_name(target)
        if target not in known:
            continue
        group = groups.setdefault(target, WeightGroup(target, by_pattern[pattern] if pattern else None))
        group.sources.setdefault(pattern or target, []).append((key, tensors[key]))
    return groups
