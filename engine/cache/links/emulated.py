"""A link of a stated bandwidth and latency that copies nothing.

All experts are in RAM from the start; "arriving" means that their deadline has passed. A GPU's copy engine takes no
CPU time either, so the computation is disturbed as little as it would be there.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.cache.link import ExpertWeights, Link, Transfer
from engine.cache.links.expert_files import ExpertFiles
from engine.cache.slot_memory import SlotBytes, SlotLayouts
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import InvalidSetting

_SPECIFICATION = re.compile(r"emulated:(?P<rate>\d+(\.\d+)?)(?P<unit>[GM])Bps(\+(?P<latency>\d+(\.\d+)?)us)?")


@dataclass(frozen=True)
class EmulatedSpeed:
    bytes_per_second: float
    latency_seconds: float = 0.0

    @classmethod
    def parse(cls, specification: str) -> EmulatedSpeed:
        """From "emulated:2.5GBps" or "emulated:2.5GBps+20us". Raises InvalidSetting."""
        match = _SPECIFICATION.fullmatch(specification)
        if match is None or float(match["rate"]) == 0:
            raise InvalidSetting(
                f"{specification!r} is not an emulated link.",
                'Write it like "emulated:2.5GBps" or "emulated:2.5GBps+20us".',
            )
        unit = 1e9 if match["unit"] == "G" else 1e6
        return cls(float(match["rate"]) * unit, float(match["latency"] or 0) / 1e6)


class EmulatedLink(Link):
    """One wire: transfers use it one after another, chunk by chunk; latency delays arrival but not the wire."""

    readers = 1
    chunk_bytes = 1 << 20

    def __init__(
        self,
        index: ExpertIndex,
        specification: str,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._layouts = SlotLayouts(index)
        self._speed = EmulatedSpeed.parse(specification)
        self.name = specification
        self._wire_free_at = 0.0
        self._closing = threading.Event()
        self._sizes: dict[ExpertKey, int] = {}
        self._far = _read_all(index, self._sizes, on_progress)

    def grow(self, slots: list[int]) -> None:
        """Nothing to provide: a slot here is a right to hold, the bytes stay where they are."""

    def shrink(self, slots: list[int]) -> None:
        """Nothing to give back."""

    def transfer_bytes(self, key: ExpertKey) -> int:
        return self._sizes[key]

    def copy(self, transfer: Transfer, start: int, stop: int) -> None:
        # A chunk that was waiting begins the moment the wire is free, however late this thread was woken.
        begin = max(self._wire_free_at, transfer.submitted_at)
        self._wire_free_at = begin + (stop - start) / self._speed.bytes_per_second
        last = stop == transfer.total_bytes
        deadline = self._wire_free_at + (self._speed.latency_seconds if last else 0.0)
        remaining = deadline - time.perf_counter()
        if remaining > 0:
            self._closing.wait(remaining)

    def finish(self, transfer: Transfer) -> None:
        """The far copy is already in the layout that is computed with."""

    def weights(self, key: ExpertKey, slot: int) -> ExpertWeights:
        return self._far[key].weights(self._layouts, key.layer)

    def close(self) -> None:
        self._closing.set()
        self._far.clear()


def _read_all(
    index: ExpertIndex, sizes: dict[ExpertKey, int], on_progress: Callable[[str, int, int], None] | None
) -> dict[ExpertKey, SlotBytes]:
    files = ExpertFiles(index, direct=False)
    keys = [ExpertKey(layer, expert) for layer, count in enumerate(index.experts_per_layer) for expert in range(count)]
    far: dict[ExpertKey, SlotBytes] = {}
    try:
        for done, key in enumerate(keys):
            far[key] = SlotBytes(index.slot_bytes)
            sizes[key] = files.transfer_bytes(key)
            files.read(key, 0, sizes[key], far[key].array)
            index.finish(key, far[key].array)
            if on_progress is not None:
                on_progress("Reading experts into the emulated host memory", done + 1, len(keys))
    finally:
        files.close()
    return far
