"""`chat`: the same chat in the terminal, or prompts from a file answered one after another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.options import (
    Budget,
    ContextLength,
    Device,
    HostCompute,
    Link,
    Model,
    Policy,
    Precision,
    Preload,
    PromptsFile,
    RecordRouting,
)
from app.terminal import AsJson, command, present
from app.terminal_progress import Progress, progress_on_stderr

if TYPE_CHECKING:
    from app.settings import Settings
    from engine import Engine


@command
def chat(
    model: Model = None,
    budget: Budget = None,
    policy: Policy = None,
    link: Link = None,
    context_length: ContextLength = None,
    device: Device = None,
    preload: Preload = None,
    host_compute: HostCompute = None,
    precision: Precision = None,
    record_routing: RecordRouting = None,
    prompts: PromptsFile = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer.", show_default="512")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default="0.7")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off.", show_default="0")] = None,
    top_p: Annotated[float | None, typer.Option(show_default="0.95")] = None,
    min_p: Annotated[float | None, typer.Option(show_default="0")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(show_default="the model's own")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be given again.")] = None,
    as_json: AsJson = False,
) -> None:
    """Chat in the terminal. With --prompts FILE, or with text piped in, answers that and ends."""
    from app.settings import load_settings

    sampling = {
        "system_prompt": system,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": stop,
    }
    options = {
        "model": model,
        "budget": budget,
        "policy": policy,
        "link": link,
        "context_length": context_length,
        "device": device,
        "preload": preload,
        "host_compute": host_compute,
        "precision": precision,
        "record_routing": record_routing,
    }
    settings = load_settings(
        options | {"sampling": {name: value for name, value in sampling.items() if value is not None}}
    )
    if as_json:
        present(lambda on_progress: _answer_all(settings, prompts, on_progress), lambda _: None, as_json=True)
    elif prompts is not None:
        _answer_aloud(settings, prompts)
    else:
        _converse(settings)


def _converse(settings: Settings) -> None:
    from app.terminal_chat import TerminalChat, typed_lines

    interactive = sys.stdin.isatty()
    with _engine(settings) as engine:
        plan = engine.plan
        for sentence in (*plan.reasons, *plan.warnings, "/help lists the commands."):
            print(sentence, file=sys.stderr)
        TerminalChat(engine, settings.sampling, _write).converse(typed_lines("> ") if interactive else sys.stdin)


def _answer_aloud(settings: Settings, file: Path) -> None:
    from app.terminal_chat import stream_answer

    chats = _read_chats(file)
    with _engine(settings) as engine:
        for messages in chats:
            _write(f"> {messages[-1]['content']}\n")
            stream_answer(engine, _with_system(messages, settings), settings.sampling, _write)
            _write("\n\n")


def _answer_all(settings: Settings, file: Path | None, on_progress: Progress) -> dict[str, Any]:
    """Every chat of the file, or what is piped in as one chat, with token ids and counters."""
    from app.terminal_chat import TerminalChat, stream_answer

    chats = _read_chats(file) if file is not None else None
    lines = [line.strip() for line in sys.stdin if line.strip()] if chats is None else []
    _require_questions(chats, lines)
    with _engine(settings, on_progress) as engine:
        answers: list[dict[str, Any]] = []
        talk = TerminalChat(engine, settings.sampling, _silent)
        turns: list[Any] = lines if chats is None else chats
        for number, turn in enumerate(turns):
            on_progress("Answering", number, len(turns))
            before = engine.stats()
            if isinstance(turn, str):
                answer = talk.answer(turn)
            else:
                answer = stream_answer(engine, _with_system(turn, settings), settings.sampling, _silent)
            answers.append({**vars(answer), "stats": (engine.stats() - before).to_dict()})
            if answer.finish_reason == "cancelled":
                raise KeyboardInterrupt
        emulation = engine.snapshot().emulation
        return {
            "model": engine.model_name,
            "plan": engine.plan.to_dict(),
            "answers": answers,
            "stats": engine.stats().to_dict(),
            "emulation": emulation and emulation.to_dict(),
        }


def _require_questions(chats: list[Any] | None, lines: list[str]) -> None:
    from engine.errors import InvalidSetting

    if chats is None and not lines:
        raise InvalidSetting("There is nothing to answer.", "Give --prompts FILE, or pipe one question a line in.")


def _read_chats(file: Path) -> list[Any]:
    from engine.lab.prompts import parse_prompts, read_prompts

    return parse_prompts(sys.stdin.read(), "stdin") if str(file) == "-" else read_prompts(file)


def _with_system(messages: list[Any], settings: Settings) -> list[Any]:
    """The system prompt goes before chats that bring none of their own."""
    system = settings.sampling.system_prompt
    if not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


@contextmanager
def _engine(settings: Settings, on_progress: Progress | None = None) -> Iterator[Engine]:
    from app.routing_records import recorded_if_asked

    with _load(settings, on_progress) as engine, recorded_if_asked(engine, settings):
        yield engine


def _load(settings: Settings, on_progress: Progress | None) -> Engine:
    from engine import Engine

    if on_progress is not None:
        return Engine.load(**settings.engine_options(), on_progress=on_progress)
    with progress_on_stderr() as report:
        report("Starting", 0, 0)
        return Engine.load(**settings.engine_options(), on_progress=report)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _silent(text: str) -> None:
    """Nobody reads along: the answer comes whole, as JSON."""
