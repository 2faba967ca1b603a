"""From stored messages to what the model is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.chats import Message

CHARACTERS_PER_TOKEN = 3.5  # an estimate on the safe side, used only to choose what to drop
KEPT_SHARE = 0.6  # of the context; the rest is room for the answer and the next turns


def engine_messages(messages: Sequence[Message], first_position: int, system_prompt: str) -> list[dict[str, Any]]:
    """Messages for `Engine.chat`: from `first_position` on, empty answers left out, roles alternating.

    Answers carry the token ids they were generated with.
    """
    prompt: list[dict[str, Any]] = []
    if system_prompt.strip():
        prompt.append({"role": "system", "content": system_prompt})
    for message in messages:
        if message.position < first_position or not message.content:
            continue
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role == "assistant" and message.token_ids:
            entry["token_ids"] = list(message.token_ids)
        _append(prompt, entry)
    return prompt


def _append(prompt: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """Joins what follows an unanswered message to it: several chat templates refuse two user turns in a row."""
    if entry["role"] == "user" and prompt and prompt[-1]["role"] == "user":
        prompt[-1] = {"role": "user", "content": f"{prompt[-1]['content']}\n\n{entry['content']}"}
    else:
        prompt.append(entry)


def drop_oldest_turns(messages: Sequence[Message], first_position: int, context_length: int) -> int:
    """Position of the first message to send so that the rest takes about KEPT_SHARE of the context.

    Turns are dropped whole, at least one, and the last user message always stays.
    """
    starts = [m.position for m in messages if m.role == "user" and m.position > first_position]
    room = KEPT_SHARE * context_length
    for start in starts:
        if sum(_estimated_tokens(m) for m in messages if m.position >= start) <= room:
            return start
    return starts[-1] if starts else first_position


def _estimated_tokens(message: Message) -> float:
    return len(message.token_ids) if message.token_ids else len(message.content) / CHARACTERS_PER_TOKEN
