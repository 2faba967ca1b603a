"""A link whose bytes say which expert they are, and which fails, dawdles and comes up short when told to."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import torch

from engine.cache.link import ExpertWeights, Link, Transfer
from engine.checkpoint.expert_key import ExpertKey

EXPERT_BYTES = 3 * 4096


class MemoryLink(Link):
    """`failures` maps the number of a copy call (from 0) to the exception it raises."""

    name = "memory"
    chunk_bytes = 4096

    def __init__(self, readers: int = 2, failures: dict[int, Exception] | None = None, delay_seconds: float = 0.0):
        self.readers = readers
        self.slots: dict[int, np.ndarray] = {}
        self.writing: dict[int, ExpertKey] = {}
        self.copied: list[ExpertKey] = []
        self.most_slots = 0
        self.closed = False
        self._failures = failures or {}
        self._delay_seconds = delay_seconds
        self._calls = 0
        self._lock = threading.Lock()
        self._random = random.Random(0)

    def grow(self, slots: list[int]) -> None:
        for slot in slots:
            assert slot not in self.slots
            self.slots[slot] = np.zeros(EXPERT_BYTES, np.uint8)
        self.most_slots = max(self.most_slots, len(self.slots))

    def shrink(self, slots: list[int]) -> None:
        for slot in slots:
            del self.slots[slot]

    def transfer_bytes(self, key: ExpertKey) -> int:
        return EXPERT_BYTES

    def copy(self, transfer: Transfer, start: int, stop: int) -> None:
        with self._lock:
            call, self._calls = self._calls, self._calls + 1
            delay = self._random.random() * self._delay_seconds
            self.copied.append(transfer.key)
        if delay:
            time.sleep(delay)
        if call in self._failures:
            self.slots[transfer.slot][start:stop] = 255  # a torn write, which nobody may ever see
            raise self._failures[call]
        self.slots[transfer.slot][start:stop] = tag(transfer.key)

    def finish(self, transfer: Transfer) -> None:
        assert (self.slots[transfer.slot] == tag(transfer.key)).all()

    def weights(self, key: ExpertKey, slot: int) -> ExpertWeights:
        array = self.slots[slot]
        return ExpertWeights(array.ctypes.data, {"weight": torch.from_numpy(array)})

    def close(self) -> None:
        self.closed = True


def tag(key: ExpertKey) -> int:
    """The byte that an expert consists of, never 0 (untouched) or 255 (torn)."""
    return 1 + (key.layer * 16 + key.expert) % 250
