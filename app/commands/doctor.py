"""`doctor`: what was found, the memory plan, one sentence for each decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.options import Budget, ContextLength, Device, Link, Model, Policy, Precision
from app.terminal import FAILED, AsJson, command, present

if TYPE_CHECKING:
    from app.diagnosis import Diagnosis

Refresh = Annotated[bool, typer.Option("--refresh", help="Measure all speeds again instead of showing the kept ones.")]


@command
def doctor(
    model: Model = None,
    budget: Budget = None,
    policy: Policy = None,
    context_length: ContextLength = None,
    device: Device = None,
    link: Link = None,
    precision: Precision = None,
    refresh: Refresh = False,
    as_json: AsJson = False,
) -> None:
    """What was found here (cards, memory, speeds), the memory plan, one sentence for each decision."""
    from app.diagnosis import Diagnosis, diagnose
    from app.settings import load_settings

    settings = load_settings(
        {
            "model": model,
            "budget": budget,
            "policy": policy,
            "context_length": context_length,
            "device": device,
            "link": link,
            "precision": precision,
        }
    )
    found = present(lambda on_progress: diagnose(settings, on_progress, refresh), _show, as_json, Diagnosis.to_dict)
    if found.error is not None:
        raise typer.Exit(FAILED)


def _show(found: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table

    from app.machine_view import machine_rows, speed_rows

    console = Console()
    tables = (
        ("Machine", machine_rows(found.machine, found.disk)),
        ("Speeds", speed_rows(found.speeds)),
        ("Model and plan", _plan_rows(found)),
    )
    for title, rows in tables:
        table = Table(title=title, show_header=False, title_justify="left")
        for row in rows:
            table.add_row(*row)
        if table.row_count:
            console.print(table)
    for sentence in found.decisions:
        console.print(f"- {sentence}", markup=False, highlight=False)
    for sentence in found.warnings:
        console.print(f"! {sentence}", markup=False, highlight=False)
    if found.error is not None:
        console.print(f"! {found.error.cause} {found.error.remedy}", markup=False, highlight=False)


def _plan_rows(found: Diagnosis) -> list[tuple[str, str]]:
    from engine.hardware.memory_plan import format_bytes

    if found.model is None or found.plan is None:
        return []
    plan = found.plan
    rows = [("model", f"{found.model['name']} ({found.model['architecture']}), {format_bytes(found.model['bytes'])}")]
    for name in ("dense", "kv", "workspace", "experts", "total"):
        rows.append((name, format_bytes(plan[f"near_bytes_{name}"])))
    rows.append(("experts held", f"{plan['slots']} of {plan['experts_total']} ({plan['expert_share']:.0%})"))
    if plan["memory_saving"] > 0:
        rows.append(("saved", f"{plan['memory_saving']:.0%} of the model's size"))
    return rows
