"""Where each expert lies in the checkpoint, as byte ranges, and how its bytes become a slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.checkpoint import mxfp4
from engine.checkpoint.converter_probe import ConverterProbe
from engine.checkpoint.expert_key import ExpertKey
from engine.checkpoint.expert_layout import ExpertParam, GroupLayout, lay_out_layer
from engine.checkpoint.safetensors_header import CheckpointTensors, read_checkpoint_headers
from engine.checkpoint.skeleton import Skeleton, build_skeleton
from engine.checkpoint.storage_plan import dense_memory_bytes, parameters_in_storage_dtype
from engine.checkpoint.weight_groups import WeightGroup, group_weights

__all__ = ["ByteRange", "ExpertIndex", "ExpertKey", "ExpertParam"]

SLOT_ALIGNMENT_BYTES = 4096


@dataclass(frozen=True)
class ByteRange:
    """`nbytes` at `offset` of file number `file` belong at `slot_offset` of the expert's slot."""

    file: int
    offset: int
    nbytes: int
    slot_offset: int


class ExpertIndex:
    """All experts of a checkpoint; holds places, no weights.

    `layer` counts MoE layers in forward order. `slot_bytes` (a multiple of 4096) is enough for any expert;
    `expert_bytes` is what the largest expert takes in the checkpoint. Where `needs_finish`, the bytes of a slot
    are in order only after `finish`; `precision` is "native" where these are the
    checkpoint's own numbers; where `is_packed`, matrices are in few bits with scales beside them
    (`engine.model.packed_product`). `total_bytes` is all that the shards hold, `total_expert_bytes` the experts'
    part of it; `dense_bytes` is the memory `load_dense` needs for the rest.
    """

    def __init__(
        self, skeleton: Skeleton, headers: CheckpointTensors, groups: Mapping[str, WeightGroup] | None = None
    ) -> None:
        if groups is None:
            groups = group_weights(skeleton.model, headers.tensors)
        self._config: Any = skeleton.model.config
        probe = ConverterProbe(self._config)
        self._layers = tuple(lay_out_layer(experts, groups, probe) for experts in skeleton.experts)
        self.files: tuple[Path, ...] = headers.files
        self.layer_names: tuple[str, ...] = tuple(experts.name for experts in skeleton.experts)
        self.experts_per_layer: tuple[int, ...] = tuple(experts.count for experts in skeleton.experts)
        self.top_k: int = max(experts.top_k for experts in skeleton.experts)
        self.precision: str = "native"
        self.is_packed: bool = any(p.dtype == torch.uint8 for layer in self._layers for g in layer for p in g.params)
        self.needs_finish: bool = any(not group.direct for layer in self._layers for group in layer)
        self.slot_bytes: int = max(_slot_bytes(layer) for layer in self._layers)
        per_layer = [sum(part.nbytes for group in layer for part in group.parts) for layer in self._layers]
        self.expert_bytes: int = max(per_layer)
        self.total_expert_bytes: int = sum(n * e for n, e in zip(per_layer, self.experts_per_layer, strict=True))
        self.total_bytes: int = headers.total_bytes
        model, expert_names = skeleton.model, skeleton.expert_parameter_names()
        stored = set() if skeleton.own_dtype else parameters_in_storage_dtype(model)
        self.dense_bytes: int = dense_memory_bytes(model, groups, stored, expert_names)

    @classmethod
    def from_checkpoint(cls, path: Path) -> ExpertIndex:
        """Index the checkpoint folder `path`; raises the typed errors of `build_skeleton` and the header reader."""
        return cls(build_skeleton(path), read_checkpoint_headers(path))

    def params(self, layer: int) -> tuple[ExpertParam, ...]:
        """The parameters in a slot that holds an expert of `layer`."""
        return tuple(param for group in self._layers[layer] for param in group.params)

    def weights_per_expert(self, layer: int) -> int:
        """How many numbers an expert of `layer` has, however they are stored."""
        numbers = (param for param in self.params(layer) if not param.name.endswith(mxfp4.SCALES))
        return sum(prod(param.shape) * (2 if param.dtype == torch.uint8 else 1) for param in numbers)

    def ranges(self, key: ExpertKey) -> tuple[ByteRange, ...]:
        """What to read for one expert, in file order; ranges adjacent both on disk and in the slot are one."""
        layer, expert = key
        pieces = sorted(
            (int(part.files[expert]), int(part.offsets[expert]), part.nbytes, slot_offset)
            for group in self._layers[layer]
            for part, slot_offset in zip(group.parts, group.part_offsets, strict=True)
        )
        merged: list[ByteRange] = []
        for file, offset, nbytes, slot_offset in pieces:
            last = merged[-1] if merged else None
            if last and (last.file, last.offset + last.nbytes, last.slot_offset + last.nbytes) == (
                file,
                offset,
                slot_offset,
            ):
                merged[-1] = ByteRange(file, last.offset, last.nbytes + nbytes, last.slot_offset)
            else:
                merged.append(ByteRange(file, offset, nbytes, slot_offset))
        return tuple(merged)

    def finish(self, key: ExpertKey, slot: np.ndarray) -> None:
        """Bring the freshly read bytes of `slot` (uint8, contiguous) into the parameters' order, in place."""
        if not self.needs_finish:
            return
        for group in self._layers[key[0]]:
            if not group.direct:
                group.reorder(slot, self._config)


def _slot_bytes(layer: tuple[GroupLayout, ...]) -> int:
    end = max(param.offset_bytes + param.nbytes for group in layer for param in group.params)
    return -(-end // SLOT_ALIGNMENT_BYTES) * SLOT_ALIGNMENT_BYTES
