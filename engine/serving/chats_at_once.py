"""How many chats are answered together: each more of them needs keys and values of its own, taken from the experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine.errors import InvalidSetting
from engine.hardware.memory_plan import Footprint, MemoryPlan

AUTO = "auto"
AUTO_CHATS = 4
LEAST_PART = 8  # the others' keys and values take at most one of so many parts of near memory


def check_beside(beside: int | str) -> None:
    """`beside`: chats besides the first, or "auto". Raises InvalidSetting."""
    if beside != AUTO and (not isinstance(beside, int) or beside < 0):
        raise InvalidSetting(f"batch_size is {beside}.", f'It must be 0 (one answer at a time) or more, or "{AUTO}".')


def chats_beside(beside: int | str, one_chat: Footprint, plan: Callable[[], MemoryPlan]) -> int:
    """As asked; "auto": up to AUTO_CHATS in all, fewer where they would take much of one chat's `plan()`."""
    if isinstance(beside, int):
        return beside
    if not one_chat.kv_bytes:
        return AUTO_CHATS - 1
    return min(AUTO_CHATS - 1, plan().near_bytes_total // LEAST_PART // one_chat.kv_bytes)


def with_chats(one_chat: Footprint, chats: int) -> Footprint:
    """What the model needs with room for so many chats."""
    return replace(one_chat, kv_bytes=chats * one_chat.kv_bytes)
