"""Near memory on a CPU: one anonymous mapping per slot, so that a freed slot returns to the system at once.

Freed torch tensors of this size stay in the allocator; an unmapped page does not.
"""

from __future__ import annotations

import numpy as np
import torch

from engine.anonymous_memory import large_paged
from engine.cache.link import ExpertWeights
from engine.checkpoint.expert_index import ExpertIndex, ExpertParam


class SlotLayouts:
    """Which layers share one arrangement of parameters in a slot (mostly all do)."""

    def __init__(self, index: ExpertIndex) -> None:
        per_layer = [index.params(layer) for layer in range(len(index.experts_per_layer))]
        self.params = list(dict.fromkeys(per_layer))
        self.of_layer = [self.params.index(layout) for layout in per_layer]

    def views(self, layer: int, data: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters of an expert of `layer` in the uint8 tensor `data`."""
        params = self.params[self.of_layer[layer]]
        return {param.name: _view(data, param) for param in params}


def _view(data: torch.Tensor, param: ExpertParam) -> torch.Tensor:
    return data[param.offset_bytes : param.offset_bytes + param.nbytes].view(param.dtype).view(param.shape)


class SlotBytes:
    """`nbytes` of page-aligned, lazily touched memory. Freed when the last view of it goes."""

    __slots__ = ("_views", "address", "array")

    def __init__(self, nbytes: int) -> None:
        self.array = large_paged(nbytes)
        self.address = self.array.ctypes.data
        self._views: dict[int, ExpertWeights] = {}

    def weights(self, layouts: SlotLayouts, layer: int) -> ExpertWeights:
        """Views of these bytes as one expert of `layer`; made once."""
        layout = layouts.of_layer[layer]
        views = self._views.get(layout)
        if views is None:
            tensors = layouts.views(layer, torch.from_numpy(self.array))
            views = self._views[layout] = ExpertWeights(self.address, tensors)
        return views


class SlotMemory:
    """The slots of a CPU cache by id."""

    def __init__(self, index: ExpertIndex) -> None:
        self._slot_bytes = index.slot_bytes
        self._layouts = SlotLayouts(index)
        self._slots: dict[int, SlotBytes] = {}

    def grow(self, slots: list[int]) -> None:
        for slot in slots:
            self._slots[slot] = SlotBytes(self._slot_bytes)

    def shrink(self, slots: list[int]) -> None:
        for slot in slots:
            del self._slots[slot]

    def bytes(self, slot: int) -> np.ndarray:
        """The slot's bytes, uint8 [slot_bytes], writable."""
        return self._slots[slot].array

    def weights(self, layer: int, slot: int) -> ExpertWeights:
        return self._slots[slot].weights(self._layouts, layer)

    def clear(self) -> None:
        self._slots.clear()
