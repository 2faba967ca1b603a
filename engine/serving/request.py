"""One prompt to be answered, and what its reader is told: written by the decoding thread, read by the caller's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import torch

from engine.generation.text_stream import TextStream
from engine.snapshot import ChatEvent

CANCELLED = "cancelled"


class TokenChoice(Protocol):
    """What draws an answer's tokens."""

    def choose(self, logits: torch.Tensor, ids: list[int]) -> int:
        """The next token id from logits [vocab], fp32, after `ids` (prompt and answer so far)."""


@dataclass(frozen=True)
class Answer:
    """`ids` end with and include an end token. `finish_reason` is "stop", "length" or "cancelled"."""

    ids: list[int]
    text: str
    finish_reason: str


class Request:
    """`text` turns ids into words and looks for stop strings; None: ids are all there is."""

    def __init__(
        self, prompt: Sequence[int], max_new_tokens: int, sampler: TokenChoice, text: TextStream | None = None
    ) -> None:
        self.prompt, self.max_new_tokens = list(prompt), max_new_tokens
        self.answer: Future[Answer] = Future()
        self.answer.set_running_or_notify_cancel()  # who holds the future cannot cancel it behind our back
        self.asked_at = time.perf_counter()
        self.progress = 0, len(self.prompt)
        """Tokens of the prompt that were read, of those that were not there before."""
        self._sampler, self._text = sampler, text
        self._ids = list(self.prompt)
        self._words: list[str] = []
        self._events: SimpleQueue[ChatEvent | BaseException] = SimpleQueue()  # no reader holds up the decoding
        self._cancelled = threading.Event()

    # -- the caller's side ----------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """The answer ends after its current token, or layer of a prefill pass."""
        self._cancelled.set()

    def events(self) -> Iterator[ChatEvent]:
        """Each as it comes, up to the last. Raises what ended the answer."""
        while True:
            event = self._events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if event.finish_reason is not None:
                return

    # -- the decoding thread's side -------------------------------------------------------------------------------

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def last_token(self) -> int:
        """Chosen, but not read yet."""
        return self._ids[-1]

    def choose(self, logits: torch.Tensor, end_ids: Collection[int], context_length: int) -> ChatEvent:
        """The next token after what was read; the event is not told yet."""
        token = self._sampler.choose(logits, self._ids)
        self._ids.append(token)
        reason = None
        if token in end_ids:
            reason = "stop"
        elif len(self._ids) - len(self.prompt) >= self.max_new_tokens or len(self._ids) > context_length:
            reason = "length"
        if self._text is None:
            return ChatEvent("", token, reason)
        piece = self._text.push(token)
        if self._text.stopped:
            return ChatEvent(piece, token, "stop")
        return ChatEvent(piece + self._text.flush() if reason else piece, token, reason)

    def cancellation(self) -> ChatEvent:
        """What is told instead of a further token."""
        return ChatEvent(self._text.flush() if self._text else "", None, CANCELLED)

    def tell(self, event: ChatEvent) -> None:
        """Hands the event to the reader; with its reason the last one completes the answer."""
        self._words.append(event.text)
        if event.finish_reason is not None:
            ids = self._ids[len(self.prompt) :]
            self.answer.set_result(Answer(ids, "".join(self._words), event.finish_reason))
        self._events.put(event)

    def fail(self, error: BaseException) -> None:
        """The answer ends with this error."""
        self.answer.set_exception(error)
        self._events.put(error)


class Submission:
    """A caller's hold on a request: iterate over its events, once; any thread may cancel it or look at it."""

    def __init__(
        self, request: Request, position: Callable[[Request], int | None], cancel: Callable[[Request], None]
    ) -> None:
        self._request, self._position, self._cancel = request, position, cancel

    def __iter__(self) -> Iterator[ChatEvent]:
        """Each event as it comes, up to the one with a `finish_reason`. Raises what ended the answer."""
        return self._request.events()

    @property
    def position(self) -> int | None:
        """How many requests will begin before this one; None once it has begun."""
        return self._position(self._request)

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """How many tokens of the prompt were read, of how many that the chat's place did not hold already."""
        return self._request.progress

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self._request.answer.done()

    def result(self, timeout_seconds: float | None = None) -> Answer:
        """Waits for the whole answer. Raises what ended it, TimeoutError when it is not there in time."""
        return self._request.answer.result(timeout_seconds)

    @property
    def future(self) -> Future[Answer]:
        """For concurrent.futures.wait, over several."""
        return self._request.answer

    def cancel(self) -> None:
        """Ends the answer after its current token, or before its first; what there is of it stays."""
        self._cancel(self._request)
