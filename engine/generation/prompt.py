"""From chat messages to token ids, re-using the ids that were generated instead of tokenising their text again.

Text does not always tokenise back to the ids it came from; with the same ids a follow-up finds its whole past in
the KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from engine.errors import InvalidSetting

Message = Mapping[str, Any]
_ROLES = ("system", "user", "assistant", "tool")


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], end_ids: set[int]) -> list[int]:
    """Token ids of the chat up to where the assistant speaks next.

    An assistant message may carry `token_ids`, the ids generated for it (with or without the end token).
    Raises InvalidSetting for messages that are no chat or that the model's template refuses.
    """
    _validate(messages)
    with_ids = [number for number, message in enumerate(messages) if message.get("token_ids")]
    marks = {number: f"\u2402reply{number}\u2403" for number in with_ids}
    rendered = _render(tokenizer, messages, marks)
    pieces = _split(rendered, [marks[number] for number in with_ids])
    if pieces is None:  # the template rewrites earlier answers (drops thinking, trims): take its word
        return _tokenise(tokenizer, _render(tokenizer, messages, {}))
    ids = _tokenise(tokenizer, pieces[0])
    for number, piece in zip(with_ids, pieces[1:], strict=True):
        ids += _join(list(messages[number]["token_ids"]), _tokenise(tokenizer, piece), end_ids)
    return ids


def _join(reply: list[int], following: list[int], end_ids: set[int]) -> list[int]:
    """The template closes an answer with the end token that the answer already brought."""
    if reply and following and reply[-1] in end_ids:
        reply = reply[:-1] if following[0] in end_ids else reply
    return reply + following


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], marks: Mapping[int, str]) -> str:
    plain = [
        {"role": message["role"], "content": marks.get(number, message["content"])}
        for number, message in enumerate(messages)
    ]
    if not getattr(tokenizer, "chat_template", None):
        return _render_without_template(plain)
    try:
        return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # templates raise whatever their author wrote
        raise InvalidSetting(
            f"The model's chat template refuses this conversation: {error}.",
            "Check the order of roles; some models take no system prompt.",
        ) from error


def _render_without_template(messages: Sequence[Message]) -> str:
    """Base models have no template: a plain transcript is the least surprising."""
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n".join([*lines, "Assistant:"])


def _split(rendered: str, marks: list[str]) -> list[str] | None:
    """The text around the marks, or None when one is not there exactly once and in order."""
    pieces, rest = [], rendered
    for mark in marks:
        if rest.count(mark) != 1:
            return None
        before, rest = rest.split(mark)
        pieces.append(before)
    return [*pieces, rest]


def _tokenise(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _validate(messages: Sequence[Message]) -> None:
    if not messages:
        raise InvalidSetting("There is no message to answer.", "Send at least one user message.")
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES or not isinstance(content, str):
            raise InvalidSetting(
                f"A message has role {role!r} and content of type {type(content).__name__}.",
                f"Each message needs a role ({', '.join(_ROLES)}) and text as content.",
            )
