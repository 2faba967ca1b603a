"""Reads single tensors of a checkpoint into memory of their own, without mapping files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from engine.checkpoint.positioned_read import open_to_read, read_at
from engine.checkpoint.safetensors_header import TensorLocation
from engine.errors import CheckpointCorrupt, CheckpointUnreadable

CHUNK_BYTES = 4 << 20  # also the most memory a conversion takes on top of its result


class TensorReader:
    """Open files of a checkpoint; a context manager that closes them.

    Files are read, not memory-mapped: mapped pages would count as this process's memory for as long as they are.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._descriptors: dict[int, int] = {}

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def read(self, location: TensorLocation, dtype: torch.dtype) -> torch.Tensor:
        """The tensor at `location` as `dtype`; converted chunk by chunk where that is not its own."""
        tensor = torch.empty(location.shape, dtype=dtype)
        flat = tensor.reshape(-1)
        if dtype == location.dtype:
            self.read_into(flat.view(torch.uint8).numpy(), location.file, location.offset)
            return tensor
        step = CHUNK_BYTES // location.dtype.itemsize
        for start in range(0, flat.numel(), step):
            raw = torch.empty(min(step, flat.numel() - start), dtype=location.dtype)
            offset = location.offset + start * location.dtype.itemsize
            self.read_into(raw.view(torch.uint8).numpy(), location.file, offset)
            flat[start : start + raw.numel()].copy_(raw)
        return tensor

    def read_into(self, target: np.ndarray, file: int, offset: int) -> None:
        """Fill `target` (uint8, contiguous) with the bytes from `offset` on."""
        view = target.data
        while len(view):
            try:
                count = read_at(self._descriptor(file), view[:CHUNK_BYTES], offset)
            except OSError as error:
                raise CheckpointUnreadable(
                    f"{self._files[file]} cannot be read ({error.strerror or error}).",
                    "Check its permissions and the disk it is on.",
                ) from error
            if count == 0:
                raise CheckpointCorrupt(
                    f"{self._files[file]} has no byte {offset}, {len(view)} bytes before the end of a tensor.",
                    "Copy or download this file again.",
                )
            view, offset = view[count:], offset + count

    def _descriptor(self, file: int) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = open_to_read(self._files[file])
        return self._descriptors[file]
