"""`doctor`: what was found, the memory plan, one sentence for each decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from app.commands.options import Budget, ContextLength, Device, Link, Model, Policy, Precision
from app.terminal import FAILED, AsJson, command, present

if TYPE_CHECKING:
    from app.diagnosis import Diagnosis


@command
def doctor(
    model: Model = None,
    budget: Budget = None,
    policy: Policy = None,
    context_length: ContextLength = None,
    device: Device = None,
    link: Link = None,
    precision: Precision = None,
    as_json: AsJson = False,
) -> None:
    """What was found here (cards, memory, disk speed), the memory plan, one sentence for each decision."""
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
    found = present(lambda on_progress: diagnose(settings, on_progress), _show, as_json, Diagnosis.to_dict)
    if found.error is not None:
        raise typer.Exit(FAILED)


def _show(found: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, rows in (("Machine", _machine_rows(found)), ("Model and plan", _plan_rows(found))):
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


def _machine_rows(found: Diagnosis) -> list[tuple[str, str]]:
    from engine.hardware.memory_plan import format_bytes

    machine, disk = found.machine, found.disk
    limited = f", limited by {machine.ram_limited_by}" if machine.ram_limited_by else ""
    rows = [("processor", f"{machine.cpu}: {machine.cpu_cores} cores, {machine.cpu_threads} threads usable")]
    for gpu in machine.gpus:
        size = f"{format_bytes(gpu.vram_free_bytes or 0)} free of {format_bytes(gpu.vram_total_bytes or 0)}"
        rows.append((f"card {gpu.index}", f"{gpu.name}: {size}"))
    rows += [
        (
            "RAM",
            f"{format_bytes(machine.ram_available_bytes)} free of {format_bytes(machine.ram_total_bytes)}{limited}",
        ),
        ("disk", f"{format_bytes(disk['free_bytes'])} free at {disk['folder']}"),
    ]
    if "speed" in disk:
        rows.append(("disk speed", _disk_speed(disk["speed"])))
    rows.append(("system", f"{machine.system}, Python {machine.python}"))
    rows.append(("libraries", ", ".join(f"{name} {version}" for name, version in machine.versions.items())))
    return rows


def _disk_speed(speed: dict[str, float]) -> str:
    patterns = ("sequential_1_reader", "sequential_2_readers", "random_1_reader", "random_2_readers")
    figures = [f"{name.replace('_', ' ')} {speed[name] / 1e9:.2f}" for name in patterns]
    return f"GB/s: {', '.join(figures)}. {speed['explanation']}"


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
