"""`models`: what is on this machine; `models delete` frees the space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.terminal import AsJson, command, present
from app.terminal_progress import Progress

if TYPE_CHECKING:
    from engine.checkpoint.catalog import ModelInfo, UnusableModel

    Scan = tuple[list[ModelInfo], list[UnusableModel]]

models = typer.Typer(help="What is on this machine; `models delete NAME` frees the space.")


@models.callback(invoke_without_command=True)
@command
def list_all(context: typer.Context, as_json: AsJson = False) -> None:
    """What is on this machine: built-in, in the models folder, in the Hugging Face cache."""
    if context.invoked_subcommand is None:
        present(_scan, _show, as_json, _to_json)


@models.command()
@command
def delete(
    name: str,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deletes a model of this program's own folder."""
    from engine.checkpoint.catalog import delete_model, find_deletable

    path = find_deletable(name)
    if not yes and not typer.confirm(f"Delete {name} in {path}?", err=True):
        typer.echo("Nothing was deleted.", err=True)
        raise typer.Exit(1)
    present(lambda _: delete_model(name), lambda freed: print(f"Freed {freed / 1e9:.2f} GB."), as_json, _freed)


def _freed(freed_bytes: int) -> dict[str, int]:
    return {"freed_bytes": freed_bytes}


def _scan(on_progress: Progress) -> Scan:
    on_progress("Reading headers", 0, 0)
    from engine.checkpoint.catalog import scan_models

    return scan_models()


def _to_json(scan: Scan) -> dict[str, Any]:
    found, unusable = scan
    problems = [{"name": one.name, "path": str(one.path), "cause": one.cause, "remedy": one.remedy} for one in unusable]
    return {"models": [model.to_dict() for model in found], "unusable": problems}


def _show(scan: Scan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "architecture", "size", "experts", "per token", "one expert")
    table.add_column("where", overflow="fold")
    for model in scan[0]:
        table.add_row(*_row(model))
    console = Console()
    console.print(table)
    for one in scan[1]:
        console.print(f"{one.name} cannot be run. {one.cause} {one.remedy}", markup=False)


def _row(model: ModelInfo) -> tuple[str, ...]:
    if not model.is_ready:
        return model.name, "", "", "", "", "", "built when it is first used"
    assert model.bytes is not None and model.expert_bytes is not None
    return (
        model.name,
        model.architecture or "",
        f"{model.bytes / 1e9:.2f} GB",
        f"{model.moe_layers} x {model.experts_per_layer}",
        str(model.experts_per_token),
        f"{model.expert_bytes / 1e6:.1f} MB",
        str(model.path),
    )
