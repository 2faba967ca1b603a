"""Raising stored weights (bf16, fp16) to fp32 for products with many rows, a bounded piece at a time.

bf16 products are some 300 times slower than fp32 ones on CPUs without bf16 units, so weights are raised first; a
piece of at most `PIECE_BYTES` stays in the processor's cache between being raised and being used.
"""

from __future__ import annotations

import threading
from math import prod

import torch

PIECE_BYTES = 8 << 20  # of fp32; also what each computing thread keeps for it

_scratch = threading.local()


def raised(weight: torch.Tensor) -> torch.Tensor:
    """`weight` in fp32, in this thread's scratch: valid until the next call. At most PIECE_BYTES in fp32."""
    return weight if weight.dtype == torch.float32 else scratch(tuple(weight.shape)).copy_(weight)


def scratch(shape: tuple[int, ...]) -> torch.Tensor:
    """fp32 memory of this thread, valid until the next call; best at most PIECE_BYTES."""
    count = prod(shape)
    buffer = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.numel() < count:
        with torch.inference_mode(False):  # or it could only ever be written to in inference mode
            buffer = torch.empty(max(count, PIECE_BYTES // 4), dtype=torch.float32)
        _scratch.buffer = buffer
    return buffer[:count].view(shape)


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x @ weight.T + bias in fp32; x [rows, in], weight [out, in] in any storage dtype, bias fp32 [out].

    Written to `out` [rows, out] fp32 when given.
    """
    out_features, in_features = weight.shape
    rows_per_piece = max(1, PIECE_BYTES // (4 * in_features))
    result = torch.empty(x.shape[0], out_features) if out is None else out
    if weight.dtype == torch.float32 or out_features <= rows_per_piece:
        torch.mm(x, raised(weight).t(), out=result)
    else:
        for start in range(0, out_features, rows_per_piece):
            stop = min(start + rows_per_piece, out_features)
            torch.mm(x, raised(weight[start:stop]).t(), out=result[:, start:stop])
    return result if bias is None else result.add_(bias)


def linear_transposed(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The same for weight [in, out]: x @ weight + bias."""
    in_features, out_features = weight.shape
    rows_per_piece = max(1, PIECE_BYTES // (4 * out_features))
    result = torch.empty(x.shape[0], out_features) if out is None else out
    if weight.dtype == torch.float32 or in_features <= rows_per_piece:
        torch.mm(x, raised(weight), out=result)
    else:
        result.zero_()
        for start in range(0, in_features, rows_per_piece):
            stop = min(start + rows_per_piece, in_features)
            result.addmm_(x[:, start:stop], raised(weight[start:stop]))
    return result if bias is None else result.add_(bias)
