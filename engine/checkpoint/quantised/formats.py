"""The two lossy formats: int8 with a scale for each row, NF4 with a scale for each 64 inputs of a row.

A matrix is always quantised as [outputs, inputs], whichever way its family keeps it, and its rows are padded with
zeros to whole blocks: no block belongs to two rows, so that any rows can be computed alone. NF4's scales stay fp32:
quantising them too would save 8 % of the bytes and cost a second table at each use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

PRECISIONS = ("int8", "nf4")
FORMAT_VERSION = 1  # of the bytes in the cache folder; another version is made anew
NF4_BLOCK = 64  # inputs that share a scale
INT8_LARGEST = 127
ROWS_AT_ONCE_BYTES = 4 << 20  # of fp32: what a conversion works on at a time

Packed = tuple[torch.Tensor, torch.Tensor]


def packed_shapes(outputs: int, inputs: int, precision: str) -> tuple[tuple[tuple[int, int], torch.dtype], ...]:
    """(shape, dtype) of the packed numbers and of their scales; the scales have one entry for each row and block."""
    if precision == "int8":
        return ((outputs, inputs), torch.int8), ((outputs, 1), torch.float32)
    blocks = -(-inputs // NF4_BLOCK)
    return ((outputs, blocks * NF4_BLOCK // 2), torch.uint8), ((outputs, blocks), torch.float32)


def pack(matrix: torch.Tensor, precision: str) -> Packed:
    """Packed numbers and scales of `matrix` [outputs, inputs], any float dtype; a few rows are raised at a time."""
    pack_rows: Callable[[torch.Tensor], Packed] = _int8_rows if precision == "int8" else _nf4_rows
    step = max(1, ROWS_AT_ONCE_BYTES // (4 * matrix.shape[1]))
    pieces = [pack_rows(matrix[start : start + step].float()) for start in range(0, matrix.shape[0], step)]
    numbers, scales = zip(*pieces, strict=True)
    return torch.cat(numbers), torch.cat(scales)


def _int8_rows(rows: torch.Tensor) -> Packed:
    from bitsandbytes.functional import int8_vectorwise_quant

    numbers, largest, _ = int8_vectorwise_quant(rows.contiguous())
    return numbers, (largest / INT8_LARGEST)[:, None]


def _nf4_rows(rows: torch.Tensor) -> Packed:
    from bitsandbytes.functional import quantize_4bit

    outputs, inputs = rows.shape
    padded = torch.nn.functional.pad(rows, (0, -inputs % NF4_BLOCK))
    numbers, state = quantize_4bit(padded, blocksize=NF4_BLOCK, quant_type="nf4")
    return numbers.view(outputs, -1), state.absmax.view(outputs, -1)
