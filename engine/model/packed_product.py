"""Products with experts stored in few bits, on the CPU: int8, NF4, or the mxfp4 of some checkpoints.

A packed matrix is [outputs, ...] numbers and [outputs, blocks] scales; its kind shows in their dtypes. It is never
raised to fp32 as a whole: the kernels raise it in registers, and for many rows a piece of it is raised at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from engine.model import kernels, upcast
from engine.model.stored_linear import MAX_KERNEL_ROWS

SCALES = "_scales"  # of parameter x are parameter x_scales
MXFP4_BIAS = 127  # of its scales, which are powers of two
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
MXFP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_NF4_TABLE, _MXFP4_TABLE = np.array(NF4, np.float32), np.array(MXFP4, np.float32)


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """`numbers`: int8 [outputs, inputs], or two in a uint8 [outputs, padded inputs / 2]; `scales` fp32 for int8 and
    NF4, exponents (uint8) for mxfp4, [outputs, blocks]."""

    numbers: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], name: str) -> PackedMatrix | None:
        """Parameter `name` of an expert; None where it is stored as plain numbers."""
        scales = tensors.get(name + SCALES)
        return None if scales is None else cls(tensors[name].flatten(1), scales)

    @property
    def is_int8(self) -> bool:
        return self.numbers.dtype == torch.int8

    @property
    def is_mxfp4(self) -> bool:
        return self.scales.dtype == torch.uint8

    @property
    def outputs(self) -> int:
        return self.numbers.shape[0]

    @property
    def padded_inputs(self) -> int:
        return self.numbers.shape[1] * (1 if self.is_int8 else 2)

    def rows(self, start: int, stop: int) -> PackedMatrix:
        return PackedMatrix(self.numbers[start:stop], self.scales[start:stop])


def linear(
    x: torch.Tensor, weight: PackedMatrix, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x @ weight.T + bias in fp32; x fp32 [rows, in], bias fp32 [out]. Written to `out` [rows, out] fp32 when given."""
    result = torch.empty(x.shape[0], weight.outputs) if out is None else out
    x = torch.nn.functional.pad(x, (0, weight.padded_inputs - x.shape[1]))
    if x.shape[0] <= MAX_KERNEL_ROWS and kernels.available():
        _by_kernel(x, weight, result)
    else:
        step = max(1, upcast.PIECE_BYTES // (4 * weight.padded_inputs))
        for start in range(0, weight.outputs, step):
            stop = min(start + step, weight.outputs)
            torch.mm(x, raised(weight.rows(start, stop)).t(), out=result[:, start:stop])
    return result if bias is None else result.add_(bias)


def raised(weight: PackedMatrix) -> torch.Tensor:
    """fp32 [outputs, padded inputs] in this thread's scratch, valid until the next call."""
    target = upcast.scratch((weight.outputs, weight.padded_inputs))
    if not kernels.available():
        return target.copy_(raised_by_torch(weight))
    from engine.model.kernels.packed_product import raise_four_bit, raise_int8

    kernels.use_torch_threads()
    if weight.is_int8:
        raise_int8(weight.numbers.numpy(), weight.scales.numpy(), target.numpy())
    else:
        raise_four_bit(*_arrays(weight), target.numpy())
    return target


def raised_by_torch(weight: PackedMatrix) -> torch.Tensor:
    """The same in memory of its own and with torch's operators alone, wherever the tensors are."""
    scales = _fp32_scales(weight)
    if weight.is_int8:
        return weight.numbers * scales
    table = _table(weight.is_mxfp4, weight.numbers.device)
    halves = [table[(weight.numbers >> 4).int()], table[(weight.numbers & 15).int()]]
    if weight.is_mxfp4:  # the earlier number is in the lower half of a byte
        halves.reverse()
    values = torch.stack(halves, dim=-1).view(weight.outputs, scales.shape[1], -1)
    return (values * scales[:, :, None]).flatten(1)


@cache
def _table(is_mxfp4: bool, device: torch.device) -> torch.Tensor:
    return torch.tensor(MXFP4 if is_mxfp4 else NF4, device=device)


def _fp32_scales(weight: PackedMatrix) -> torch.Tensor:
    if not weight.is_mxfp4:
        return weight.scales
    return torch.ldexp(torch.ones_like(weight.scales, dtype=torch.float32), weight.scales.int() - MXFP4_BIAS)


def _by_kernel(x: torch.Tensor, weight: PackedMatrix, out: torch.Tensor) -> None:
    from engine.model.kernels.packed_product import four_bit_rows, int8_rows

    kernels.use_torch_threads()
    if weight.is_int8:
        int8_rows(weight.numbers.numpy(), weight.scales.numpy(), x.detach().contiguous().numpy(), out.numpy())
        return
    pairs = x.detach().view(x.shape[0], -1, 2)
    early, late = (pairs[:, :, half].contiguous().numpy() for half in (0, 1))
    high, low = (late, early) if weight.is_mxfp4 else (early, late)
    numbers, scales, table, _ = _arrays(weight)
    four_bit_rows(numbers, scales, table, high, low, out.numpy())


def _arrays(weight: PackedMatrix) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Numbers, scales and table of a matrix of half bytes, and whether a byte's upper half comes first."""
    table = _MXFP4_TABLE if weight.is_mxfp4 else _NF4_TABLE
    return weight.numbers.numpy(), weight.scales.numpy(), table, not weight.is_mxfp4
