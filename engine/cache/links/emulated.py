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
from engine.errors import InvalidSetting, NotEnoughMemory
from engine.hardware.available_memory import available_ram_bytes
from engine.hardware.gpu_profiles import GpuProfile, profile_named
from engine.hardware.memory_plan import format_bytes

PREFIX = "emulated:"


class EmulatedLink(TimedLink):
    """Far copies in RAM, which are what is computed with."""

    def __init__(
        self,
        index: ExpertIndex,
        specification: str,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._layouts = SlotLayouts(index)
        self.speed = self._stated_speed(specification)
        self.name = specification
        self._sizes: dict[ExpertKey, int] = {}
        self._far = _read_all(index, self._sizes, on_progress)

    def _stated_speed(self, specification: str) -> EmulatedSpeed:
        return EmulatedSpeed.parse(specification)

    def transfer_bytes(self, key: ExpertKey) -> int:
        return self._sizes[key]

    def weights(self, key: ExpertKey, slot: int) -> ExpertWeights:
        return self._far[key].weights(self._layouts, key.layer)

    def host_weights(self, key: ExpertKey) -> ExpertWeights:
        return self._far[key].weights(self._layouts, key.layer)

    def close(self) -> None:
        self._far.clear()


class EmulatedCardLink(EmulatedLink):
    """The link of a card. Its speed here is known only once this machine's computation is: `speed` has to be set
    before transfers are made over it.
    """

    def __init__(
        self, index: ExpertIndex, card: GpuProfile, on_progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        self.card = card
        super().__init__(index, card.label, on_progress)

    def _stated_speed(self, specification: str) -> EmulatedSpeed:
        return EmulatedSpeed(self.card.link_bytes_per_second, self.card.link_latency_seconds)


def emulated_card(link: str) -> GpuProfile | None:
    """The card of "emulated:4060"; None for other links and for stated speeds. Raises InvalidSetting."""
    if not link.startswith(PREFIX) or EmulatedSpeed.is_stated(link):
        return None
    try:
        return profile_named(link.removeprefix(PREFIX))
    except InvalidSetting as unknown:
        raise InvalidSetting(
            f"{link!r} is not an emulated link. {unknown.cause}",
            f'Write a speed, like "emulated:2.5GBps" or "emulated:2.5GBps+20us", or a card. {unknown.remedy}',
        ) from unknown


def _read_all(
    index: ExpertIndex, sizes: dict[ExpertKey, int], on_progress: Callable[[str, int, int], None] | None
) -> dict[ExpertKey, SlotBytes]:
    _require_ram(index)
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


def _require_ram(index: ExpertIndex) -> None:
    needed_bytes, free_bytes = index.slot_bytes * sum(index.experts_per_layer), available_ram_bytes()
    if needed_bytes > free_bytes:
        raise NotEnoughMemory(
            f"An emulated link keeps all experts in RAM, {format_bytes(needed_bytes)}, and {format_bytes(free_bytes)} "
            "are free.",
            "Close other programs, choose a smaller model, or replay recorded routing with `simulate --gpu CARD`.",
        )
