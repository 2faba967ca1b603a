"""Writing one safetensors file as a stream, laid out so that an expert is one aligned range on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

ALIGNMENT_BYTES = 4096  # what O_DIRECT asks of offsets and lengths
BF16_BYTES = 2


@dataclass(frozen=True)
class TensorEntry:
    """One bf16 tensor of a shard: its name on disk and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape)) * BF16_BYTES


def header_bytes(entries: Sequence[TensorEntry]) -> bytes:
    """Length and JSON header of a shard, padded with spaces so that the data starts at ALIGNMENT_BYTES."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.size_bytes
        header[entry.name] = {"dtype": "BF16", "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 to the bit patterns of bf16 (uint16), rounded to nearest, ties to even. For finite values."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class ShardWriter:
    """Writes the tensors of ``entries`` in exactly that order; leaving the context flushes them to disk."""

    def __init__(self, path: Path, entries: Sequence[TensorEntry]) -> None:
        self._path = path
        self._expected: Iterator[TensorEntry] = iter(entries)
        self._file = path.open("wb")
        self._file.write(header_bytes(entries))

    def write(self, name: str, bits: np.ndarray) -> None:
        """Append tensor ``name`` given as bf16 bit patterns; ValueError when it is not the next one."""
        entry = next(self._expected, None)
        if entry is None or (name, bits.shape) != (entry.name, entry.shape) or bits.dtype != np.uint16:
            raise ValueError(f"{self._path.name}: {name} {bits.dtype} {bits.shape} given, {entry} expected")
        self._file.write(np.ascontiguousarray(bits).data)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                missing = next(self._expected, None)
                if missing is not None:
                    raise ValueError(f"{self._path.name}: {missing.name} was never written")
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
