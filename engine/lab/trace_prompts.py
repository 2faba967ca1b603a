"""Answers prompts while their routing is recorded: training text of one's own choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import ContextFull, InvalidSetting, TraceStoreUnavailable
from engine.lab.prompts import Messages
from engine.routing.traces.trace_store import TraceStore

if TYPE_CHECKING:
    from engine import Engine

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TraceSettings:
    """`tokens` is the most of each answer, 0 only reads the prompts; `ahead` and `hidden` as in `Engine.record_to`."""

    tokens: int = 128
    temperature: float = 0.7
    ahead: int = 0
    hidden: bool = False


def trace_prompts(
    engine: Engine,
    store: TraceStore,
    chats: Sequence[Messages],
    settings: TraceSettings,
    on_progress: Progress,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Records every chat as a conversation of its own, until `stopped()`; returns how many were too long to read.

    Whatever ends it, the rows up to there are in `store` then. Raises TraceStoreUnavailable where the disk fails, and
    what `Engine.record_to` and `Engine.chat` raise.
    """
    too_long = 0
    engine.record_to(store, settings.ahead, settings.hidden)
    try:
        for number, chat in enumerate(chats):
            if stopped() or engine.recording_problem:
                break
            on_progress("Recording", number, len(chats))
            engine.new_recorded_conversation()
            try:
                _answer(engine, chat, settings)
            except ContextFull:
                too_long += 1
    finally:
        engine.record_to(None)
    if engine.recording_problem:
        raise TraceStoreUnavailable(
            engine.recording_problem, "What was written before it is kept; the same command goes on there."
        )
    return too_long


def _answer(engine: Engine, chat: Messages, settings: TraceSettings) -> None:
    from engine.generation.prompt import encode_chat

    if settings.tokens:
        for _ in engine.chat(chat, max_new_tokens=settings.tokens, temperature=settings.temperature):
            """The text is not of interest here."""
        return
    if engine.tokenizer is None:
        raise InvalidSetting("This checkpoint has no tokenizer.", "Add its tokenizer files.")
    engine.logits(encode_chat(engine.tokenizer, chat, set()))
