"""The smallest correct ExpertProvider: reads an expert from disk each time it is asked for. The oracle for caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.checkpoint.expert_index import ExpertIndex, ExpertKey
from engine.checkpoint.tensor_reader import TensorReader


@dataclass(frozen=True)
class LoadedExpert:
    slot: np.ndarray
    tensors: dict[str, torch.Tensor]

    @property
    def address(self) -> int:
        return self.slot.ctypes.data


def read_expert(index: ExpertIndex, reader: TensorReader, key: ExpertKey) -> LoadedExpert:
    """One expert in a slot of its own, aligned as slots are."""
    raw = np.full(index.slot_bytes + 4096, 0xAB, dtype=np.uint8)
    start = -raw.ctypes.data % 4096
    slot = raw[start : start + index.slot_bytes]
    for piece in index.ranges(key):
        reader.read_into(slot[piece.slot_offset : piece.slot_offset + piece.nbytes], piece.file, piece.offset)
    index.finish(key, slot)
    tensors = {
        p.name: torch.from_numpy(slot[p.offset_bytes : p.offset_bytes + p.nbytes]).view(p.dtype).view(p.shape)
        for p in index.params(key.layer)
    }
    return LoadedExpert(slot, tensors)


class NaiveProvider:
    """`routing` collects (layer, expert ids of the step) as observed."""

    def __init__(self, index: ExpertIndex) -> None:
        self.index = index
        self.routing: list[tuple[int, list[list[int]]]] = []

    def observe(self, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> None:
        self.routing.append((layer, top_k_index.tolist()))

    def acquire(self, layer: int, experts: Sequence[int]) -> NaiveLease:
        return NaiveLease(self, layer, experts)


class NaiveLease:
    def __init__(self, provider: NaiveProvider, layer: int, experts: Sequence[int]) -> None:
        self._provider, self._layer, self._waiting = provider, layer, list(experts)

    def __enter__(self) -> NaiveLease:
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiting.clear()

    def next_batch(self) -> list[tuple[int, LoadedExpert]]:
        if not self._waiting:
            return []
        expert = self._waiting.pop(0)
        key = ExpertKey(self._layer, expert)
        with TensorReader(self._provider.index.files) as reader:
            return [(expert, read_expert(self._provider.index, reader, key))]
