"""What is done when a card has less memory than planned: the cache becomes smaller and the work goes on."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from engine.cache.expert_cache import ExpertCache
from engine.hardware.memory_plan import MemoryPlan, format_bytes

_STEP = 8  # an eighth of the slots is given up, or tried without, at a time


def fit_slots(cache: ExpertCache, slots: int, minimum: int) -> int:
    """Resizes the cache to `slots`, or to as many as there is memory for; returns how many.

    What it holds it keeps. Raises torch.OutOfMemoryError when it would have fewer than `minimum`.
    """
    lowest = max(cache.slots, minimum)
    while True:
        try:
            cache.resize(slots)
            return slots
        except torch.OutOfMemoryError:
            if slots <= lowest:
                raise
        slots = max(lowest, slots - max(1, slots // _STEP))


def with_slots(plan: MemoryPlan, slots: int, cause: str) -> MemoryPlan:
    """The plan as it turned out: `slots` of them, because of `cause`, a part of a sentence."""
    size = format_bytes(slots * plan.slot_bytes)
    held = f"The cache holds {slots} of {plan.experts_total} experts ({slots / plan.experts_total:.0%}, {size})."
    warning = f"{cause}: {slots} experts are held instead of {plan.slots}."
    return replace(
        plan,
        slots=slots,
        near_bytes_experts=slots * plan.slot_bytes,
        reasons=(*plan.reasons[:-1], held),
        warnings=(*plan.warnings, warning),
    )


class MemoryRelief:
    """Gives slots up when the card's memory is short in the middle of an answer."""

    def __init__(self, cache: ExpertCache, minimum: int, on_shrunk: Callable[[int], None]) -> None:
        self._cache, self._minimum = cache, minimum
        self._on_shrunk = on_shrunk

    def give_up_slots(self) -> bool:
        """Call from the computing thread, between two passes. False when the cache is as small as it can be."""
        gc.collect()  # what the failed pass held may be part of a cycle
        held = self._cache.slots
        slots = max(self._minimum, held - max(1, held // _STEP))
        if slots >= held:
            return False
        self._cache.resize(slots)
        self._on_shrunk(slots)
        return True
