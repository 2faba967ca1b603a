"""`batch`: a file of prompts, several at once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.options import Budget, ContextLength, Device, Link, Model, Policy, Precision
from app.terminal import INTERRUPTED, AsJson, command, present
from app.terminal_progress import Progress

if TYPE_CHECKING:
    from app.batch.job import BatchSettings

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements-ray.txt"


class Spread(StrEnum):
    ROUND_ROBIN = "round-robin"
    ROUTES = "routes"


@dataclass(frozen=True)
class OnRay:
    """What was asked of Ray, if anything was; Ray itself is imported only then."""

    address: str | None
    workers: int | None
    spread: str | None

    def check(self) -> None:
        """Raises InvalidSetting where Ray is needed and not there, or not needed and asked about."""
        from engine.errors import InvalidSetting

        if self.address is None:
            if self.workers or self.spread:
                raise InvalidSetting("--workers and --spread are about several engines.", "Use them with --ray.")
        elif find_spec("ray") is None:
            raise InvalidSetting(
                "Ray, which joins several machines, is not installed.",
                f"Install it with `{sys.executable} -m pip install -r {REQUIREMENTS}`, on every machine.",
            )

    def run(
        self,
        source: Path,
        target: Path,
        options: dict[str, Any],
        settings: BatchSettings,
        schedule: tuple[Any, ...],
        on_progress: Progress,
    ) -> dict[str, Any]:
        from app.batch.nodes.session import ray_session
        from app.batch.output import BatchOutput

        assert self.address is not None
        on_progress("Starting Ray", 0, 0)
        with (
            BatchOutput(target) as output,
            ray_session(self.address, self.workers, options["device"], options["budget"]) as nodes,
        ):
            from app.batch.nodes.job import NodesJob, run_batch_on_nodes

            job = NodesJob(nodes, options, self.spread or Spread.ROUND_ROBIN.value, settings, schedule=schedule)
            return run_batch_on_nodes(job, source, output, on_progress)


@command
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Lines of OpenAI's batch format.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="A line for each, in the same order.")],
    batch_size: Annotated[int, typer.Option(min=1, max=256, help="Prompts answered at once.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, where its line does not say.")] = 512,
    seed: Annotated[int, typer.Option(help="Its line's number is added; lines may have their own.")] = 0,
    scheduler: Annotated[
        str,
        typer.Option(
            help="Which chats share a pass: off, paper (similar predicted routes), cache-aware (fewest experts to "
            "fetch), waves (all at once), or auto for what is quickest here."
        ),
    ] = "auto",
    group_size: Annotated[
        int | None,
        typer.Option(min=1, help="Most chats in a pass.", show_default="all, or half of them for a grouping"),
    ] = None,
    model: Model = None,
    budget: Budget = None,
    policy: Policy = None,
    link: Link = None,
    precision: Precision = None,
    device: Device = None,
    context_length: ContextLength = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='Several engines, with Ray: "auto" or an address joins a cluster, an engine on each machine; "local" '
            "is for trying. --budget is then each engine's.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --ray: engines in all.", show_default="one on each machine, 2 local")
    ] = None,
    spread: Annotated[
        Spread | None,
        typer.Option(
            help="With --ray: in turn, or prompts that are expected to use the same experts to one engine.",
            show_default="round-robin",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answers a file of prompts, several at once. Ctrl-C or a kill lose nothing: the same command goes on."""
    from app.settings import load_settings

    given = {
        "model": model,
        "budget": budget,
        "policy": policy,
        "link": link,
        "precision": precision,
        "device": device,
        "context_length": context_length,
    }
    options = load_settings(given).engine_options() | {"batch_size": batch_size}
    on_ray = OnRay(ray, workers, spread.value if spread else None)
    on_ray.check()

    def work(on_progress: Progress) -> dict[str, Any]:
        from app.batch.job import BatchSettings, count_lines, run_batch
        from app.batch.output import BatchOutput
        from app.terminal_chat import ctrl_c_cancels
        from engine import Engine
        from engine.scheduling.token_scheduler import SchedulerSettings

        settings, schedule = BatchSettings(max_tokens, seed), SchedulerSettings(scheduler, group_size)
        count_lines(source)  # a file that cannot be read is told before anything is loaded
        if on_ray.address:
            return on_ray.run(source, target, options, settings, (scheduler, group_size), on_progress)
        with (
            BatchOutput(target) as output,
            Engine.load(**options, on_progress=on_progress) as engine,
            ctrl_c_cancels(engine) as stopped,
        ):
            engine.schedule(schedule)
            return run_batch(engine, source, output, settings, on_progress, stopped)

    report = present(work, _show, as_json)
    if report["stopped"]:
        raise typer.Exit(INTERRUPTED)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("answered", f"{report['lines_written']:,} of {report['lines']:,} lines")
    if report["lines_kept"]:
        table.add_row("of them before", f"{report['lines_kept']:,}")
    if report["lines_failed"]:
        table.add_row("with an error", f"{report['lines_failed']:,}")
    table.add_row("speed", f"{report['tokens_per_second']:.1f} tokens/s, {report['tokens']:,} tokens")
    table.add_row("experts", f"{report['experts_per_token']:.1f} a token, {report['hit_rate']:.0%} were there")
    if "experts_per_step" in report:
        table.add_row(
            "a pass", f"{report['experts_per_step']:.0f} distinct experts, {report['tokens_per_step']:.1f} tokens"
        )
        table.add_row("scheduling", f"{report['scheduling_share']:.1%} of the time ({_in_words(report['groupings'])})")
    table.add_row("moved", f"{report['bytes_moved'] / 1e9:.2f} GB")
    for worker in report.get("workers", ()):
        table.add_row(
            f"engine {worker['worker']}",
            f"{worker['node']}: {worker['lines']:,} lines, {worker['tokens_per_second']:.1f} tokens/s, "
            f"{worker['hit_rate']:.0%} were there, {worker['bytes_moved'] / 1e9:.2f} GB moved",
        )
    if "spread" in report:
        table.add_row("spread", report["spread"])
    table.add_row("file", report["file"])
    Console().print(table)
    if report["stopped"]:
        print("Stopped; the same command goes on from here.")


def _in_words(passes_by_name: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in passes_by_name.items()) or "nothing to choose"
