"""A checkpoint's files that fail when told to, and say what was read."""

from __future__ import annotations

import threading

import numpy as np

from engine.cache.links.expert_files import ExpertFiles
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.expert_key import ExpertKey


class WatchedFiles(ExpertFiles):
    """`failures` maps the number of a read (from 0) to the exception it raises."""

    def __init__(self, index: ExpertIndex, failures: dict[int, BaseException] | None = None) -> None:
        super().__init__(index, direct=False)
        self.reads: list[ExpertKey] = []
        self.closed = False
        self._failures = failures or {}
        self._numbering = threading.Lock()

    def read(self, key: ExpertKey, start: int, stop: int, slot: np.ndarray) -> None:
        with self._numbering:
            number = len(self.reads)
            self.reads.append(key)
        if number in self._failures:
            slot[start:stop] = 255
            raise self._failures[number]
        super().read(key, start, stop, slot)

    def close(self) -> None:
        self.closed = True
        super().close()
