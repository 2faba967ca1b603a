"""Writes answers in a thread of their own, whatever the browser does, and saves them while they grow."""

from __future__ import annotations

import sys
import threading
import time
import traceback
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.chats import ChatStore, Message
from app.engine_host import EngineHost
from app.prompt import drop_oldest_turns, engine_messages
from app.settings import Sampling
from engine.errors import ContextFull, EngineBusy, EngineClosed, EngineError

if TYPE_CHECKING:
    from engine import Engine
    from engine.serving.request import Submission

SAVE_SECONDS = 0.5
CANCELLED = "cancelled"
FAILED = "error"


class AnswerFailed(EngineError):
    """An answer ended with an error nobody foresaw."""


@dataclass
class LiveAnswer:
    """An answer being written, or waiting for its turn. Written by its thread only, read by all."""

    chat_id: str
    message_id: str
    sampling: Sampling
    drop_oldest: bool = False
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    stop_asked: bool = False
    submission: Submission | None = None  # once the model was asked
    started_at: float = field(default_factory=time.monotonic)
    first_token_seconds: float | None = None
    decoding_seconds: float = 0.0


class Answers:
    """One answer at a time in each chat; they belong to the program, not to a browser tab. The engine's queue says
    which are written now and which wait."""

    def __init__(self, host: EngineHost, store: ChatStore) -> None:
        self._host = host
        self._store = store
        self._lock = threading.Lock()
        self._live: dict[str, LiveAnswer] = {}  # by chat, the oldest first
        self._threads: dict[str, threading.Thread] = {}
        self._revisions: defaultdict[str, int] = defaultdict(int)
        self._boot = uuid.uuid4().hex[:6]

    @property
    def in_progress(self) -> list[LiveAnswer]:
        """All that are being written or wait, the oldest first."""
        with self._lock:
            return list(self._live.values())

    def live(self, chat_id: str) -> LiveAnswer | None:
        """The answer in progress in this chat, if any."""
        return self._live.get(chat_id)

    def stamp(self, chat_id: str) -> str:
        """The chat's id and its revision; every open page compares it with what it shows."""
        return f"{chat_id}|{self._boot}{self._revisions[chat_id]}"

    def touch(self, chat_id: str) -> None:
        """Tells every open page that the chat changed."""
        self._revisions[chat_id] += 1

    def check_free(self, chat_id: str) -> None:
        """Raises EngineBusy while an answer is in progress in this chat."""
        if chat_id in self._live:
            raise EngineBusy(
                "The answer to the message before is still being written.", "Wait until it is finished, or stop it."
            )

    def check_idle(self) -> None:
        """Raises EngineBusy while an answer is in progress in any chat."""
        answers = self.in_progress
        if answers:
            chat = self._store.chat(answers[0].chat_id)
            raise EngineBusy(
                f"An answer is being written in “{chat.title if chat else 'another chat'}”"
                + (f", and {len(answers) - 1} more are in progress." if len(answers) > 1 else "."),
                "Wait until it is finished, or stop it there.",
            )

    def start(self, chat_id: str, sampling: Sampling, drop_oldest: bool = False) -> LiveAnswer:
        """Begins the answer to the last message of the chat. Raises EngineBusy."""
        with self._lock:
            self.check_free(chat_id)
            message = self._store.begin_answer(chat_id)
            live = LiveAnswer(chat_id, message.id, sampling, drop_oldest)
            thread = threading.Thread(target=self._write, args=(live,), name="answer", daemon=True)
            self._live[chat_id], self._threads[chat_id] = live, thread
            thread.start()
        self.touch(chat_id)
        return live

    def stop(self, chat_id: str) -> None:
        """Ends the chat's answer after its current token; what there is of it stays."""
        live = self._live.get(chat_id)
        if live is not None:
            live.stop_asked = True
            if live.submission is not None:
                live.submission.cancel()

    def wait(self, chat_id: str, timeout: float = 10.0) -> None:
        """Returns when the chat's answer has ended and is saved."""
        thread = self._threads.get(chat_id)
        if thread is not None:
            thread.join(timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Stops and saves the answers in progress."""
        end = time.monotonic() + timeout
        answers = self.in_progress
        for live in answers:
            self.stop(live.chat_id)
        for live in answers:
            self.wait(live.chat_id, max(end - time.monotonic(), 0.0))

    def _write(self, live: LiveAnswer) -> None:
        try:
            reason, stats = self._answer(live)
        except EngineError as error:
            reason, stats = FAILED, _error_stats(error)
        except Exception as error:  # whatever it is, the chat has to say that its answer ended
            traceback.print_exc(file=sys.stderr)
            reason, stats = FAILED, _error_stats(_unforeseen(error))
        self._finish(live, reason, stats)

    def _answer(self, live: LiveAnswer) -> tuple[str, dict[str, Any]]:
        """Why it ended and its figures; asks again when the model was changed before the answer had begun."""
        while True:
            engine = self._wait_for_engine(live)
            try:
                before = engine.stats()
                reason = self._stream(engine, live)
                return reason, _answer_stats(live, engine, before)
            except EngineClosed:
                if live.token_ids or live.stop_asked or self._host.engine is engine:
                    raise

    def _wait_for_engine(self, live: LiveAnswer) -> Engine:
        while not live.stop_asked:
            engine = self._host.wait(0.2)
            if engine is not None:
                return engine
        raise EngineClosed("The answer was stopped before the model was ready.", "Ask for it again.")

    def _stream(self, engine: Engine, live: LiveAnswer) -> str:
        arguments = live.sampling.chat_arguments()
        saved_at = time.monotonic()
        reason = CANCELLED
        live.submission = engine.submit(self._prompt(engine, live), caller=live.chat_id, **arguments)
        if live.stop_asked:  # in between
            live.submission.cancel()
        for event in live.submission:
            self._take(live, event)
            reason = event.finish_reason or reason
            if time.monotonic() - saved_at >= SAVE_SECONDS:
                self._store.save_answer(live.message_id, live.text, live.token_ids)
                saved_at = time.monotonic()
        return reason

    def _take(self, live: LiveAnswer, event: Any) -> None:
        now = time.monotonic() - live.started_at
        if event.token_id is not None:
            live.token_ids.append(event.token_id)
            if live.first_token_seconds is None:
                live.first_token_seconds = now
            live.decoding_seconds = now - live.first_token_seconds
        live.text += event.text

    def _prompt(self, engine: Engine, live: LiveAnswer) -> list[dict[str, Any]]:
        messages = [m for m in self._store.messages(live.chat_id) if m.id != live.message_id]
        chat = self._store.chat(live.chat_id)
        first = chat.first_position if chat else 0
        if live.drop_oldest:
            first = drop_oldest_turns(messages, first, engine.context_length)
            self._store.send_from(live.chat_id, first)
        return engine_messages(messages, first, live.sampling.system_prompt)

    def _finish(self, live: LiveAnswer, reason: str, stats: dict[str, Any]) -> None:
        try:
            self._store.save_answer(live.message_id, live.text, live.token_ids, reason, stats)
        finally:
            with self._lock:
                del self._live[live.chat_id]
            self.touch(live.chat_id)


def chat_of(stamp: str) -> str:
    """The id of the chat that `stamp` belongs to; "" where none was opened yet."""
    return stamp.split("|")[0]


def last_answer(messages: list[Message]) -> Message | None:
    """The answer at the end of a chat, if it ends with one."""
    return messages[-1] if messages and messages[-1].role == "assistant" else None


def _answer_stats(live: LiveAnswer, engine: Engine, before: Any) -> dict[str, Any]:
    """Its own figures, but for the cache's: those are of all that was answered from its asking to its end, of which
    `others_tokens` were not its own.
    """
    interval = (engine.stats() - before).to_dict()
    tokens = len(live.token_ids)
    later = max(tokens - 1, 0)
    speed = later / live.decoding_seconds if live.decoding_seconds > 0 else None
    emulation = engine.snapshot().emulation
    return {
        "tokens": tokens,
        "first_token_seconds": live.first_token_seconds,
        "tokens_per_second": speed if speed is None or emulation is None else speed * emulation.dilation,
        "hit_rate": interval.get("hit_rate"),
        "stall_seconds": interval.get("stall_seconds"),
        "others_tokens": max(interval.get("tokens", 0) - tokens, 0),
        **({} if emulation is None else {"emulated": emulation.label, "time_dilation": emulation.dilation}),
    }


def _error_stats(error: EngineError) -> dict[str, Any]:
    kind = next(cls.__name__ for cls in type(error).__mro__ if issubclass(cls, EngineError))
    stats: dict[str, Any] = {"error": {"kind": kind, "cause": error.cause, "remedy": error.remedy}}
    if isinstance(error, ContextFull):
        stats["error"]["needed_tokens"] = error.needed_tokens
    return stats


def _unforeseen(error: Exception) -> AnswerFailed:
    return AnswerFailed(
        f"The answer ended with an unforeseen error: {type(error).__name__}: {error}.",
        "Ask for it again; the terminal shows where it happened.",
    )
