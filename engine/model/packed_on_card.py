"""Products with packed experts on a card, in the dtype of the activations.

NF4 goes through bitsandbytes' own kernels, which unpack in registers; int8 and mxfp4 are unpacked by a few of torch's
operators. Nothing here waits for the card.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from engine.model.packed_product import PackedMatrix, raised_by_torch


def linear(x: torch.Tensor, weight: PackedMatrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias in the dtype of x; x [rows, in], bias [out] of that dtype."""
    x = F.pad(x, (0, weight.padded_inputs - x.shape[1]))
    if weight.is_int8:
        return F.linear(x, weight.numbers.to(x.dtype) * weight.scales.to(x.dtype), bias)
    if weight.is_mxfp4:
        return F.linear(x, raised_by_torch(weight).to(x.dtype), bias)
    return _nf4(x, weight, bias)


def _nf4(x: torch.Tensor, weight: PackedMatrix, bias: torch.Tensor | None) -> torch.Tensor:
    from bitsandbytes import matmul_4bit
    from bitsandbytes.functional import QuantState

    state = QuantState(
        weight.scales.flatten(),
        shape=torch.Size((weight.outputs, weight.padded_inputs)),
        blocksize=weight.padded_inputs // weight.scales.shape[1],
        quant_type="nf4",
        dtype=x.dtype,
    )
    return matmul_4bit(x, weight.numbers.reshape(-1, 1), state, bias=bias)
