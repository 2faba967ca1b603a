"""A chat in the terminal: one conversation, a few slash commands, Ctrl-C stops the answer and a second one leaves."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.hardware.memory_plan import format_bytes

if TYPE_CHECKING:
    from app.settings import Sampling
    from engine import Engine

HELP = """\
/budget 25%   change the memory budget (also 6GiB, auto); without a value: show the plan
/stats        what the cache has done since the start
/reset        begin a new chat
/help         this
/quit         leave (also Ctrl-D)
Ctrl-C stops the answer; a second one leaves."""

# A model may write escape sequences; a terminal must not act on them.
CONTROL_CHARACTERS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160)])


@dataclass(frozen=True)
class TerminalAnswer:
    """A finished answer; `finish_reason` is "stop", "length" or "cancelled"."""

    text: str
    token_ids: list[int]
    finish_reason: str | None


class TerminalChat:
    """The conversation so far and what a line of input does to it."""

    def __init__(self, engine: Engine, sampling: Sampling, write: Callable[[str], None]) -> None:
        self._engine, self._sampling, self._write = engine, sampling, write
        self._messages: list[dict[str, Any]] = []
        self._reset()

    def converse(self, lines: Iterable[str]) -> None:
        """Answers line by line until they end or /quit."""
        for line in lines:
            text = line.strip()
            if text in ("/quit", "/exit"):
                return
            try:
                self._act(text)
            except EngineError as error:
                self._write(f"{error.cause} {error.remedy}\n")

    def answer(self, text: str) -> TerminalAnswer:
        """One turn: streams the answer and keeps it, with its token ids, for the next turn."""
        self._messages.append({"role": "user", "content": text})
        try:
            answer = stream_answer(self._engine, self._messages, self._sampling, self._write)
        except EngineError:
            self._messages.pop()  # a question that could not be answered must not burden the next one
            raise
        self._messages.append({"role": "assistant", "content": answer.text, "token_ids": answer.token_ids})
        return answer

    def _act(self, text: str) -> None:
        name, _, value = text.partition(" ")
        actions: dict[str, Callable[[], None]] = {
            "/help": lambda: self._write(HELP + "\n"),
            "/reset": self._reset,
            "/stats": lambda: self._write(describe_stats(self._engine) + "\n"),
            "/budget": lambda: self._budget(value.strip()),
        }
        if name in actions:
            actions[name]()
        elif name.startswith("/"):
            self._write(f"There is no command {name}. /help lists them.\n")
        elif text:
            self.answer(text)
            self._write("\n")

    def _reset(self) -> None:
        system = self._sampling.system_prompt
        self._messages = [{"role": "system", "content": system}] if system else []

    def _budget(self, budget: str) -> None:
        plan = self._engine.resize(budget) if budget else self._engine.plan
        for sentence in (*plan.reasons, *plan.warnings):
            self._write(sentence + "\n")
        self._write(f"Memory in use: {format_bytes(plan.near_bytes_total)}.\n")


def stream_answer(
    engine: Engine, messages: list[dict[str, Any]], sampling: Sampling, write: Callable[[str], None]
) -> TerminalAnswer:
    """Writes the answer as it comes. Ctrl-C ends it after the current token, a second one raises KeyboardInterrupt."""
    pieces: list[str] = []
    token_ids: list[int] = []
    reason = None
    with ctrl_c_cancels(engine):
        for event in engine.chat(messages, **sampling.chat_arguments()):
            pieces.append(event.text)
            if event.token_id is not None:
                token_ids.append(event.token_id)
            reason = event.finish_reason
            write(event.text.translate(CONTROL_CHARACTERS))
    return TerminalAnswer("".join(pieces), token_ids, reason)


def typed_lines(prompt: str) -> Iterator[str]:
    """What the person types, with line editing where the system has it, until Ctrl-D."""
    try:
        import readline  # noqa: F401 - importing it gives `input` its editing keys
    except ImportError:
        print("(no line editing on this system)", file=sys.stderr)
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return


def describe_stats(engine: Engine) -> str:
    """Counters since load, in words."""
    stats, emulation = engine.stats(), engine.snapshot().emulation
    emulated = (
        "" if emulation is None else f" ({emulation.label}, in its time: {emulation.dilation:.3g} x this machine's)"
    )
    return (
        f"{stats.tokens} tokens, {stats.tokens_per_second:.1f} a second{emulated}; experts: {stats.hits} hits, "
        f"{stats.late} late, {stats.misses} misses ({stats.hit_rate:.0%} ready when needed); "
        f"{format_bytes(stats.bytes_total)} moved, {stats.stall_seconds:.1f} s waited for them; memory "
        f"{format_bytes(stats.near_bytes_total)} of a model of {format_bytes(stats.model_bytes_total)} "
        f"(saving {stats.memory_saving:.0%})."
    )


@contextmanager
def ctrl_c_cancels(engine: Engine) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C only asks: an exception in the middle of a computation would tear it apart.

    Gives a function that says whether it was pressed.
    """
    asked = threading.Event()

    def ask_first(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        engine.cancel()

    before = signal.signal(signal.SIGINT, ask_first)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
