"""One layer's packed experts as a safetensors file: one tensor of bytes, [experts, bytes of an expert]."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

DATA_START_BYTES = 4096  # the header's length, padded: what O_DIRECT asks of offsets


def write_experts(path: Path, experts: Iterable[np.ndarray], count: int, stride_bytes: int) -> None:
    """Streams `count` experts (uint8 [stride_bytes] each) to `path` and flushes them to the disk."""
    with path.open("wb") as file:
        file.write(_header(count, stride_bytes))
        for expert in experts:
            file.write(expert.data)
        file.flush()
        os.fsync(file.fileno())


def file_bytes(count: int, stride_bytes: int) -> int:
    """Size of such a file."""
    return DATA_START_BYTES + count * stride_bytes


def _header(count: int, stride_bytes: int) -> bytes:
    entry = {"dtype": "U8", "shape": [count, stride_bytes], "data_offsets": [0, count * stride_bytes]}
    text = json.dumps({"experts": entry}).encode()
    length = DATA_START_BYTES - 8
    return length.to_bytes(8, "little") + text.ljust(length)
