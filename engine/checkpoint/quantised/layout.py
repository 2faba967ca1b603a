"""Where the packed parameters of one expert lie: the same in the cache folder's files and in a slot."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from engine.checkpoint.expert_layout import PARAM_ALIGNMENT_BYTES, ExpertParam
from engine.checkpoint.quantised.formats import pack, packed_shapes
from engine.model.packed_product import SCALES

STRIDE_ALIGNMENT_BYTES = 4096  # what O_DIRECT asks of offsets and lengths


@dataclass(frozen=True)
class PackedLayer:
    """One MoE layer. `native` are the parameters before, `params` after; matrices are packed, all else is kept.

    `stride_bytes` is what one expert takes on disk and in a slot.
    """

    native: tuple[ExpertParam, ...]
    params: tuple[ExpertParam, ...]
    stride_bytes: int
    precision: str
    transposed: bool

    def pack(self, slot: np.ndarray) -> np.ndarray:
        """Bytes of the packed expert [stride_bytes] from a slot with the native one; both uint8."""
        packed = np.zeros(self.stride_bytes, np.uint8)
        places = {param.name: param for param in self.params}
        for param in self.native:
            tensor = _view(slot, param)
            if param.name + SCALES not in places:
                _view(packed, places[param.name]).copy_(tensor)
                continue
            numbers, scales = pack(tensor.t() if self.transposed else tensor, self.precision)
            _view(packed, places[param.name]).copy_(numbers)
            _view(packed, places[param.name + SCALES]).copy_(scales)
        return packed

    @property
    def weights(self) -> int:
        """Numbers in one expert."""
        return sum(prod(param.shape) for param in self.native)


def lay_out_packed(native: tuple[ExpertParam, ...], precision: str, module: Any) -> PackedLayer:
    """The arrangement for the experts of transformers' `module`."""
    transposed = bool(getattr(module, "is_transposed", False))
    params: list[ExpertParam] = []
    end = 0
    for param in native:
        for name, shape, dtype in _packed(param, precision, transposed):
            offset = -(-end // PARAM_ALIGNMENT_BYTES) * PARAM_ALIGNMENT_BYTES
            params.append(ExpertParam(name, shape, dtype, offset, prod(shape) * dtype.itemsize))
            end = offset + params[-1].nbytes
    stride = -(-end // STRIDE_ALIGNMENT_BYTES) * STRIDE_ALIGNMENT_BYTES
    return PackedLayer(native, tuple(params), stride, precision, transposed)


def _packed(param: ExpertParam, precision: str, transposed: bool) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    if len(param.shape) != 2:
        return [(param.name, param.shape, param.dtype)]
    rows, columns = param.shape
    outputs, inputs = (columns, rows) if transposed else (rows, columns)
    numbers, scales = packed_shapes(outputs, inputs, precision)
    return [(param.name, *numbers), (param.name + SCALES, *scales)]


def _view(slot: np.ndarray, param: ExpertParam) -> torch.Tensor:
    piece = torch.from_numpy(slot[param.offset_bytes : param.offset_bytes + param.nbytes])
    return piece.view(param.dtype).view(param.shape)
