"""The held-out texts that ship with the project, as token ids with the positions that count."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HELD_OUT_DIR = Path(__file__).resolve().parents[2] / "assets" / "heldout"
MAX_PASSAGE_TOKENS = 1024


@dataclass(frozen=True)
class Passage:
    """Token ids, and for each whether its prediction is measured."""

    ids: list[int]
    counted: list[bool]


def load_documentation(tokenizer: Any, folder: Path = HELD_OUT_DIR) -> list[Passage]:
    """Documentation passages: every token but the first is predicted."""
    passages = []
    for record in _records(folder / "documentation.jsonl"):
        ids = tokenizer.encode(record["text"], add_special_tokens=False)[:MAX_PASSAGE_TOKENS]
        passages.append(Passage(ids, [False] + [True] * (len(ids) - 1)))
    return passages


def load_chats(tokenizer: Any, folder: Path = HELD_OUT_DIR) -> list[Passage]:
    """Chats: the model's answers are predicted, with the messages before them as context."""
    return [chat_passage(record, tokenizer) for record in _records(folder / "chats.jsonl")]


def chat_passage(record: dict[str, Any], tokenizer: Any) -> Passage:
    """One chat as the chat template renders it; the end of a last message that was cut off is left out."""
    ids: list[int] = []
    counted: list[bool] = []
    messages = record["messages"]
    for number, message in enumerate(messages):
        complete = record["complete"] or number < len(messages) - 1
        head = tokenizer.encode(f"<|im_start|>{message['role']}\n", add_special_tokens=False)
        body = tokenizer.encode(message["content"] + "<|im_end|>" * complete, add_special_tokens=False)
        tail = tokenizer.encode("\n" * complete, add_special_tokens=False)
        ids += head + body + tail
        answer = message["role"] == "assistant"
        counted += [False] * len(head) + [answer] * len(body) + [False] * len(tail)
    return Passage(ids, counted)


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
