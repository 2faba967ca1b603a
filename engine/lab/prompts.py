"""Chats to measure with: a small varied set, or a file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.errors import InvalidSetting

Messages = list[dict[str, Any]]
"""A chat: [{"role": "user", "content": "..."}, ...]."""

ROLES = ("system", "user", "assistant")


def _ask(question: str) -> Messages:
    return [{"role": "user", "content": question}]


DEFAULT_PROMPTS: tuple[Messages, ...] = (
    _ask("Tell me a long story about a lighthouse keeper who finds a map in a bottle."),
    _ask("Explain step by step how a bicycle stays upright, so that a child understands it."),
    _ask("Write a Python program that reads a text file and counts how often each word occurs. Explain it."),
    [
        {"role": "user", "content": "I have eggs, rice, an onion and some spinach. What can I cook?"},
        {"role": "assistant", "content": "You could make fried rice with eggs, onion and spinach."},
        {"role": "user", "content": "Good. Give me the whole recipe with times and amounts."},
    ],
    _ask("What were the causes of the French Revolution? Give the main points and explain each."),
    [
        {"role": "system", "content": "You are a patient teacher of mathematics."},
        {"role": "user", "content": "Why is the sum of the angles in a triangle 180 degrees?"},
    ],
    _ask("Write a friendly letter to my neighbour asking to borrow a ladder, and suggest a time."),
    _ask("Compare travelling by train and by plane: cost, time, comfort and the environment."),
)

WARM_UP_CHAT: Messages = _ask("What should I see in Lisbon on a rainy afternoon? Plan it hour by hour.")
"""Fills a cache before it is measured; none of the measured ones, whose experts would then lie ready."""


def read_prompts(file: Path | None, take: int | None = None) -> list[Messages]:
    """Chats from a file of JSON lines `{"messages": [...]}`, or the set that ships with the project.

    `take` keeps the first so many. Raises InvalidSetting naming the line that cannot be used.
    """
    chats = list(DEFAULT_PROMPTS) if file is None else parse_prompts(_read_text(file), str(file))
    return chats[:take]


def parse_prompts(text: str, origin: str) -> list[Messages]:
    """The chats in `text`, each without the answer it may end with: that is to be given anew. Empty lines are skipped.

    `origin` names the text in errors.
    """
    chats = [
        _parse_line(line, f"Line {number} of {origin}")
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    if not chats:
        raise _unusable(f"{origin} holds no prompts.")
    return chats


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _unusable(f"The prompts file {file} does not exist.") from None
    except OSError as problem:
        raise _unusable(f"The prompts file {file} cannot be read ({problem.strerror}).") from problem
    except UnicodeDecodeError:
        raise _unusable(f"The prompts file {file} is not UTF-8 text.") from None


def _parse_line(line: str, where: str) -> Messages:
    try:
        entry = json.loads(line)
    except ValueError as problem:
        raise _unusable(f"{where} is not JSON ({problem}).") from None
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if not isinstance(messages, list) or not messages:
        raise _unusable(f'{where} has no "messages" list.')
    for message in messages:
        _check_message(message, where)
    asked = [number for number, message in enumerate(messages, start=1) if message["role"] != "assistant"]
    if not asked:
        raise _unusable(f"{where} holds answers alone.")
    return messages[: asked[-1]]


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise _unusable(f"{where} has a message whose role is not one of {', '.join(ROLES)}.")
    if not isinstance(message.get("content"), str):
        raise _unusable(f"{where} has a message without text in its content.")


def _unusable(cause: str) -> InvalidSetting:
    return InvalidSetting(cause, 'Give one JSON object per line: {"messages": [{"role": "user", "content": "..."}]}.')
