"""`models`: what is on this machine; show one before it is downloaded, download it, delete it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.options import Budget, ContextLength, Precision
from app.terminal import FAILED, AsJson, command, present
from app.terminal_progress import Progress

if TYPE_CHECKING:
    from app.model_offer import ModelOffer
    from engine.checkpoint.catalog import ModelInfo, UnusableModel
    from engine.checkpoint.quantised import QuantisedCopy

    Scan = tuple[list[ModelInfo], list[UnusableModel]]

CARD_CHARACTERS = 1500

models = typer.Typer(help="What is on this machine; `show`, `download` and `delete` a model.")


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
    """Deletes a model of this program's own folder, or a quantised copy."""
    from engine.checkpoint.catalog import delete_model, find_deletable

    path = find_deletable(name)
    if not yes and not typer.confirm(f"Delete {name} in {path}?", err=True):
        typer.echo("Nothing was deleted.", err=True)
        raise typer.Exit(1)
    present(lambda _: delete_model(name), lambda freed: print(f"Freed {freed / 1e9:.2f} GB."), as_json, _freed)


@models.command()
@command
def show(
    name: str,
    budget: Budget = None,
    context_length: ContextLength = None,
    precision: Precision = None,
    as_json: AsJson = False,
) -> None:
    """What a model is and whether it will fit here, from its config and headers alone; before any download."""
    from app.model_offer import make_offer
    from app.settings import load_settings

    settings = load_settings({"budget": budget, "context_length": context_length, "precision": precision})
    offer = present(lambda on_progress: make_offer(name, settings, on_progress), _show_offer, as_json, _offer_to_json)
    if offer.error is not None:
        raise typer.Exit(FAILED)


@models.command()
@command
def download(name: str, as_json: AsJson = False) -> None:
    """Fetches "org/name" from the hub; goes on where an earlier download stopped, and checks what it fetched."""
    from app.model_offer import make_offer
    from app.settings import load_settings
    from engine.checkpoint.hub.download import fetch_all

    settings = load_settings({})

    def work(on_progress: Progress) -> ModelOffer:
        offer = make_offer(name, settings, on_progress)  # what cannot be run is told before it is fetched
        if offer.estimate.download is not None:
            offer.estimate.download.require_space()
            fetch_all(offer.estimate.download, on_progress)
        return offer

    present(work, _show_downloaded, as_json, _downloaded_to_json)


def _show_offer(offer: ModelOffer) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=offer.name, show_header=False, title_justify="left")
    for row in offer.facts:
        table.add_row(*row)
    console.print(table)
    for sentence in offer.sentences:
        console.print(f"{'!' if offer.error else '-'} {sentence}", markup=False, highlight=False)
    if card := _card(offer):
        console.print(f"\n{card}", markup=False, highlight=False)
    if not offer.is_here:
        console.print(f"\n`python launch.py models download {offer.name}` fetches it.", markup=False, highlight=False)


def _card(offer: ModelOffer) -> str:
    from engine.checkpoint.model_card import read_model_card

    card = read_model_card(offer.estimate.folder) or ""
    return card if len(card) <= CARD_CHARACTERS else f"{card[:CARD_CHARACTERS].rstrip()} ..."


def _offer_to_json(offer: ModelOffer) -> dict[str, Any]:
    return offer.to_dict() | {"card": _card(offer)}


def _show_downloaded(offer: ModelOffer) -> None:
    print(f"{offer.name} is on this machine: {_folder(offer)}")
    for sentence in offer.sentences:
        print(f"- {sentence}")


def _downloaded_to_json(offer: ModelOffer) -> dict[str, Any]:
    return offer.to_dict() | {"is_here": True, "download_bytes": 0, "path": _folder(offer)}


def _folder(offer: ModelOffer) -> str:
    found = offer.estimate.download
    return str(found.repository.snapshot if found else offer.estimate.folder)


def _freed(freed_bytes: int) -> dict[str, int]:
    return {"freed_bytes": freed_bytes}


def _scan(on_progress: Progress) -> Scan:
    on_progress("Reading headers", 0, 0)
    from engine.checkpoint.catalog import scan_models

    return scan_models()


def _to_json(scan: Scan) -> dict[str, Any]:
    found, unusable = scan
    problems = [{"name": one.name, "path": str(one.path), "cause": one.cause, "remedy": one.remedy} for one in unusable]
    copies = [copy.to_dict() for copy in _copies()]
    return {"models": [model.to_dict() for model in found], "unusable": problems, "quantised": copies}


def _show(scan: Scan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "architecture", "size", "experts", "per token", "one expert")
    table.add_column("where", overflow="fold")
    for model in scan[0]:
        table.add_row(*_row(model))
    console = Console()
    console.print(table)
    for copy in _copies():
        words = f"{copy.name}: experts of {copy.source} as {copy.precision}, {copy.bytes / 1e9:.2f} GB."
        console.print(words, markup=False, highlight=False)
    for one in scan[1]:
        console.print(f"{one.name} cannot be run. {one.cause} {one.remedy}", markup=False)


def _copies() -> list[QuantisedCopy]:
    from engine.checkpoint.quantised import list_copies

    return list_copies()


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
