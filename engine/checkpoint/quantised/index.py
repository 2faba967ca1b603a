"""An ExpertIndex over the cache folder: a file for each MoE layer, an aligned range for each expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.checkpoint.expert_index import ByteRange, ExpertIndex, ExpertKey, ExpertParam
from engine.checkpoint.quantised.expert_file import DATA_START_BYTES
from engine.checkpoint.quantised.layout import PackedLayer


class QuantisedIndex(ExpertIndex):
    """`native` describes the checkpoint in `source`; `folder` holds, or will hold, its experts at `precision`.

    `total_bytes` stays the checkpoint's own, so that savings are counted from there.
    """

    def __init__(
        self, native: ExpertIndex, layers: tuple[PackedLayer, ...], precision: str, source: Path, folder: Path
    ) -> None:
        self.native, self.layers = native, layers
        self.precision, self.source, self.folder = precision, source, folder
        self.is_packed = True
        self.files = tuple(folder / f"layer-{layer:05d}.safetensors" for layer in range(len(layers)))
        self.layer_names = native.layer_names
        self.experts_per_layer = native.experts_per_layer
        self.top_k = native.top_k
        self.needs_finish = False
        self.slot_bytes = max(layer.stride_bytes for layer in layers)
        self.expert_bytes = self.slot_bytes
        self.total_expert_bytes = sum(
            layer.stride_bytes * count for layer, count in zip(layers, native.experts_per_layer, strict=True)
        )
        self.total_bytes = native.total_bytes
        self.dense_bytes = native.dense_bytes

    def params(self, layer: int) -> tuple[ExpertParam, ...]:
        return self.layers[layer].params

    def weights_per_expert(self, layer: int) -> int:
        return self.layers[layer].weights

    def ranges(self, key: ExpertKey) -> tuple[ByteRange, ...]:
        layer, expert = key
        stride = self.layers[layer].stride_bytes
        return (ByteRange(layer, DATA_START_BYTES + expert * stride, stride, 0),)

    def finish(self, key: ExpertKey, slot: np.ndarray) -> None:
        """The bytes lie in the files as they do in a slot."""
