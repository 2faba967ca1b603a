"""No subcommand: the chat page in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands.options import (
    Budget,
    ChatsAtOnce,
    ContextLength,
    Device,
    HostCompute,
    Link,
    Model,
    Policy,
    Precision,
    Preload,
    RecordRouting,
)
from app.terminal import command


@command
def page(
    context: typer.Context,
    model: Model = None,
    budget: Budget = None,
    port: Annotated[int | None, typer.Option(help="Port on this machine.", show_default="7860")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the browser.")] = False,
    policy: Policy = None,
    link: Link = None,
    context_length: ContextLength = None,
    device: Device = None,
    preload: Preload = None,
    host_compute: HostCompute = None,
    precision: Precision = None,
    chats_at_once: ChatsAtOnce = None,
    record_routing: RecordRouting = None,
) -> None:
    """Chat with a Mixture-of-Experts model larger than your memory, and see what each gigabyte buys.

    Without a subcommand: the chat page in the browser, on this machine only.
    """
    if context.invoked_subcommand is not None:
        return
    from app.server import run

    run(
        engine_options={
            "model": model,
            "budget": budget,
            "device": device,
            "preload": preload,
            "host_compute": host_compute,
            "precision": precision,
            "policy": policy,
            "link": link,
            "context_length": context_length,
        },
        port=port,
        open_browser=False if no_browser else None,
        chats_at_once=chats_at_once,
        record_routing=record_routing,
    )
