"""A link of a stated bandwidth and latency that copies nothing.

All experts are in RAM from the start; "arriving" means that their deadline has passed.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.cache.link import ExpertWeights
from engine.cache.links.expert_files import ExpertFiles
from engine.cache.slot_memory import SlotBytes, SlotLayouts
from engine.cache.timed_transfers import EmulatedSpeed, TimedLink
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.expert_key import ExpertKey


class EmulatedLink(TimedLink):
    """Far copies in RAM, which are what is computed with."""

    def __init__(
        self,
        index: ExpertIndex,
        specification: str,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._layouts = SlotLayouts(index)
        self.speed = EmulatedSpeed.parse(specification)
        self.name = specification
        self._sizes: dict[ExpertKey, int] = {}
        self._far = _read_all(index, self._sizes, on_progress)

    def transfer_bytes(self, key: ExpertKey) -> int:
        return self._sizes[key]

    def weights(self, key: ExpertKey, slot: int) -> ExpertWeights:
        return self._far[key].weights(self._layouts, key.layer)

    def close(self) -> None:
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
