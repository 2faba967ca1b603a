"""`trace`: records which experts prompts use; `trace show` and `trace forget` for what was recorded."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.options import Budget, Link, Model, PromptsFile
from app.terminal import INTERRUPTED, AsJson, command, present
from app.terminal_progress import Progress

if TYPE_CHECKING:
    from engine.routing.traces.trace_store import TraceSummary
    from engine.routing.traces.traced_model import TracedModel

trace = typer.Typer(help="Record which experts prompts use; `trace show` and `trace forget` what was recorded.")

Recorded = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Default: what was recorded of your chats.")]


@trace.callback(invoke_without_command=True)
@command
def record(
    context: typer.Context,
    prompts: PromptsFile = None,
    out: Annotated[Path | None, typer.Option(help="File to record into; one that exists is added to.")] = None,
    model: Model = None,
    budget: Budget = None,
    link: Link = None,
    tokens: Annotated[int, typer.Option(min=0, help="Tokens of each answer; 0 only reads the prompts.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 is greedy.")] = 0.7,
    ahead: Annotated[int, typer.Option(min=0, help="Also ask the routers of so many deeper layers.")] = 0,
    hidden: Annotated[bool, typer.Option("--hidden", help="Also keep the final hidden states.")] = False,
    take: Annotated[int | None, typer.Option(min=1, help="Use only the first so many prompts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answers prompts and records each token's id, experts and router weights. Ctrl-C keeps what is recorded."""
    if context.invoked_subcommand is not None:
        return
    from app.settings import load_settings
    from engine.errors import InvalidSetting
    from engine.lab.prompts import read_prompts
    from engine.lab.trace_prompts import TraceSettings

    if out is None:
        raise InvalidSetting("There is no file to record into.", "Give --out FILE.sqlite.")
    chats = read_prompts(prompts, take)
    options = load_settings({"model": model, "budget": budget, "link": link}).engine_options()
    settings = TraceSettings(tokens, temperature, ahead, hidden)
    report = present(lambda on_progress: _record(options, out, chats, settings, on_progress), _show_run, as_json)
    if report["stopped"]:
        print("Stopped.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


@trace.command()
@command
def show(file: Recorded = None, as_json: AsJson = False) -> None:
    """What was recorded: of your chats, or in FILE."""
    present(lambda _: _summaries(file), _show_files, as_json, lambda found: {"recorded": [_facts(s) for s in found]})


@trace.command()
@command
def forget(
    file: Recorded = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deletes what was recorded: of your chats, with what was learnt from them, or in FILE."""
    from app import routing_records

    what = f"all recorded routing in {file or routing_records.records_dir()}"
    if file is None:
        what += " and what was learnt from it"
    if not yes and not typer.confirm(f"Delete {what}?", err=True):
        typer.echo("Nothing was deleted.", err=True)
        raise typer.Exit(1)
    present(
        lambda _: routing_records.forget_all() if file is None else routing_records.forget(file),
        lambda freed: print(f"Forgotten. Freed {freed / 1e6:.1f} MB."),
        as_json,
        lambda freed: {"freed_bytes": freed},
    )


def _record(
    options: dict[str, Any], out: Path, chats: list[Any], settings: Any, on_progress: Progress
) -> dict[str, Any]:
    from app.terminal_chat import ctrl_c_cancels
    from engine import Engine
    from engine.lab.trace_prompts import trace_prompts
    from engine.routing.traces.trace_store import TraceStore

    if out.exists():
        TraceStore(out).close()  # a file that cannot be used is told before anything is loaded
    with Engine.load(**options, on_progress=on_progress) as engine, TraceStore(out, engine.traced_model) as store:
        before, begun = store.summary(), time.perf_counter()
        with ctrl_c_cancels(engine) as stopped:
            too_long = trace_prompts(engine, store, chats, settings, on_progress, stopped)
        seconds, after = time.perf_counter() - begun, store.summary()
        return {
            **_facts(after),
            "new_conversations": after.conversations - before.conversations,
            "new_tokens": after.tokens - before.tokens,
            "prompts_too_long": too_long,
            "seconds": seconds,
            "stopped": stopped(),
        }


def _summaries(file: Path | None) -> list[TraceSummary]:
    from app.routing_records import recorded
    from engine.routing.traces.trace_store import TraceStore

    if file is None:
        return recorded()
    with TraceStore(file) as store:
        return [store.summary()]


def _facts(summary: TraceSummary) -> dict[str, Any]:
    return {
        "path": str(summary.path),
        "model": None if summary.model is None else _named(summary.model),
        "conversations": summary.conversations,
        "tokens": summary.tokens,
        "bytes": summary.bytes,
    }


def _named(model: TracedModel) -> dict[str, Any]:
    return {"name": model.name, "fingerprint": model.fingerprint, **model.shape.to_dict()}


def _show_files(found: list[TraceSummary]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not found:
        print("Nothing is recorded. `--record-routing` records your chats, `trace --prompts FILE --out FILE` prompts.")
        return
    table = Table("model", "layers x experts", "per token", "conversations", "tokens", "size")
    table.add_column("where", overflow="fold")
    for one in found:
        table.add_row(
            *_columns(one.model), str(one.conversations), f"{one.tokens:,}", f"{one.bytes / 1e6:.1f} MB", str(one.path)
        )
    Console().print(table)


def _columns(model: TracedModel | None) -> tuple[str, str, str]:
    if model is None:
        return "", "", ""
    return model.name, f"{model.shape.layers} x {model.shape.experts}", str(model.shape.top_k)


def _show_run(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("recorded", f"{report['new_tokens']:,} tokens of {report['new_conversations']} conversations")
    table.add_row("in", f"{report['seconds']:.1f} s")
    table.add_row("file", report["path"])
    table.add_row("holds", f"{report['tokens']:,} tokens of {report['conversations']} conversations")
    table.add_row("size", f"{report['bytes'] / 1e6:.1f} MB")
    if report["prompts_too_long"]:
        table.add_row("left out", f"{report['prompts_too_long']} prompts longer than the context")
    Console().print(table)
