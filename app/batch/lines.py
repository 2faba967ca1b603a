"""One line of a batch: OpenAI's batch format in, the same format out. Nothing in it depends on when it was answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

URL = "/v1/chat/completions"


class _Message(BaseModel, extra="ignore"):
    role: str
    content: str


class _Body(BaseModel, extra="ignore"):
    """What of a chat completion's request is honoured; the answer's `model` is the one that is loaded."""

    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Literal[1] = 1
    stream: Literal[False] = False


class _Line(BaseModel, extra="ignore"):
    custom_id: str
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions"] = URL
    body: _Body


@dataclass(frozen=True)
class BatchLine:
    """A line that can be asked. `seed` is always set, so that the answer is the same whenever it is given."""

    number: int
    custom_id: str
    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be, and why. `custom_id` as far as it is known."""

    number: int
    custom_id: str | None
    problem: str


def read_line(number: int, text: str, max_tokens: int, seed: int) -> BatchLine | BadLine:
    """`number` counts lines from 0; `max_tokens` is for lines that do not say, `seed` + number likewise."""
    try:
        given = json.loads(text)
    except ValueError as error:
        return BadLine(number, None, f"This line is not JSON: {error}.")
    custom_id = given.get("custom_id") if isinstance(given, dict) else None
    try:
        line = _Line.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        return BadLine(number, custom_id if isinstance(custom_id, str) else None, f"{where}: {first['msg']}.")
    body = line.body
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return BatchLine(
        number,
        line.custom_id,
        [message.model_dump() for message in body.messages],
        body.max_completion_tokens or body.max_tokens or max_tokens,
        body.temperature,
        body.top_p,
        seed + number if body.seed is None else body.seed,
        tuple(mark for mark in stop if mark),
    )


def answer_line(line: BatchLine, model: str, text: str, reason: str, prompt_tokens: int, tokens: int) -> dict[str, Any]:
    """What is written for an answer; `text` is cut at the first stop mark."""
    ends = [place for mark in line.stop if (place := text.find(mark)) >= 0]
    if ends:
        text, reason = text[: min(ends)], "stop"
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    identity = f"batch_req_{line.number}"
    body = {"id": identity, "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}
    response = {"status_code": 200, "request_id": identity, "body": body}
    return {"id": identity, "custom_id": line.custom_id, "response": response, "error": None}


def error_line(bad: BadLine) -> dict[str, Any]:
    """What is written for a line that could not be asked."""
    error = {"code": "invalid_request", "message": bad.problem}
    return {"id": f"batch_req_{bad.number}", "custom_id": bad.custom_id, "response": None, "error": error}
