"""Options that several commands take; None means "not given": environment, settings file and defaults decide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None, typer.Option(help='"demo", a name that `models` lists, or a checkpoint\'s folder.', show_default="demo")
]
Budget = Annotated[
    str | None,
    typer.Option(help='Memory: "auto", a share of the experts ("25%") or a total ("6GiB").', show_default="auto"),
]
Policy = Annotated[
    str | None,
    typer.Option(
        help="Who leaves the cache: auto, adaptive, lru, lru-per-layer, lfu, lfu-per-layer or predictive.",
        show_default="auto",
    ),
]
Link = Annotated[
    str | None,
    typer.Option(
        help="Where experts wait: auto, disk, disk:direct, emulated:2.5GBps or emulated:CARD, such as emulated:4060.",
        show_default="auto",
    ),
]
ContextLength = Annotated[int | None, typer.Option(help="Tokens the chat may hold.", show_default="2048")]
Device = Annotated[str | None, typer.Option(help="Where the model is computed: auto or cpu.", show_default="auto")]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Of the experts: auto or native (the checkpoint's own numbers), int8 or nf4 (smaller, lossy).",
        show_default="auto",
    ),
]
ChatsAtOnce = Annotated[
    int | None,
    typer.Option(
        help="Chats that are answered together, 1 to 64, each with memory of its own; 0 for as many as go well.",
        show_default="0",
    ),
]
Preload = Annotated[
    bool | None,
    typer.Option(
        "--preload/--no-preload",
        help="With a card: read as many experts as fit into RAM before the first token, instead of as they are needed.",
        show_default="off",
    ),
]
HostCompute = Annotated[
    bool | None,
    typer.Option(
        "--host-compute/--no-host-compute",
        help="With a card: the processor computes experts that are not there when that is quicker than moving them. "
        "It rounds otherwise than the card.",
        show_default="off",
    ),
]
RecordRouting = Annotated[
    bool | None,
    typer.Option(
        "--record-routing/--no-record-routing",
        help="Keep the tokens of chats and the experts they use, on this machine, for training; `trace forget`.",
        show_default="off",
    ),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option("--prompts", help='JSON lines of {"messages": [...]}.', show_default="a set that comes with it"),
]


def listed(text: str) -> tuple[str, ...]:
    """The parts of an option that takes several values with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
