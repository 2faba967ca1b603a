"""Token ids to give every contender: chats, and long prompts cut from ordinary text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.errors import InvalidSetting
from engine.generation.prompt import encode_chat
from engine.lab.prompts import DEFAULT_PROMPTS, Messages
from engine.loading import load_tokenizer


class PeerPrompts:
    """Tokenised once, so that all contenders read the same ids."""

    def __init__(self, path: Path, chats: Sequence[Messages]) -> None:
        tokenizer = load_tokenizer(path)
        if tokenizer is None:
            raise InvalidSetting(f"The checkpoint {path} has no tokenizer.", "Add its tokenizer files.")
        self.chats: list[list[int]] = [encode_chat(tokenizer, chat, set()) for chat in chats]
        text = "\n\n".join(message["content"] for chat in DEFAULT_PROMPTS for message in chat)
        self._text_ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def long(self, length: int, start: int) -> list[int]:
        """`length` tokens of text, others for every `start`, so that no beginning of it is in any KV cache."""
        text = self._text_ids
        return [text[(start + place) % len(text)] for place in range(length)]
