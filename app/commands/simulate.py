"""`simulate`: replays recorded routing at any budget and link."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.options import Model, listed
from app.terminal import AsJson, command, present
from app.terminal_progress import Progress


@command
def simulate(
    traces: Annotated[Path, typer.Option(help="What `trace` recorded.")],
    token_ms: Annotated[
        float | None,
        typer.Option(min=0.01, help="Milliseconds a token takes with everything resident (`bench decode`)."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="A card, such as 4060, in place of --token-ms and --link: its memory's and link's speed."),
    ] = None,
    prediction_ms: Annotated[
        float, typer.Option(min=0, help="Milliseconds that predicting costs of each token (`bench decode`).")
    ] = 0.0,
    budget: Annotated[str, typer.Option(help="Shares of the experts, with commas.")] = "15%,25%,35%,45%",
    link: Annotated[
        str | None,
        typer.Option(
            help="emulated:2.5GBps, or stall:50% for the speed at which the best plain cache waits for half of the "
            "time; with commas.",
            show_default="emulated:2.5GBps",
        ),
    ] = None,
    policies: Annotated[
        str,
        typer.Option(
            help="lru, lfu, lru-per-layer, lfu-per-layer, adaptive, predictive, least-stale, belady, clairvoyant, and "
            "predictive:this+next+reuse, which knows what it else guesses of these."
        ),
    ] = "lru,lru-per-layer,lfu,lfu-per-layer,predictive,belady,clairvoyant",
    predictor: Annotated[
        Path | None, typer.Option(help="A trained predictor's file, for the predictive policy.")
    ] = None,
    chats: Annotated[
        str | None,
        typer.Option(
            help="Numbers of chats that decode together, 4,8,16: their passes are simulated. Policies may then also be "
            "predictive+chats, which asks the predictor about every chat, waves-frequency, waves-eviction."
        ),
    ] = None,
    model: Model = None,
    take: Annotated[int | None, typer.Option(min=2, help="Use only the first so many conversations.")] = None,
    as_json: AsJson = False,
) -> None:
    """Decoding speed on recorded routing: the same cache and prefetcher, on a virtual clock."""

    def work(on_progress: Progress) -> dict[str, Any]:
        from app.settings import load_settings
        from engine.checkpoint.dense_model import open_checkpoint
        from engine.lab.simulation.simulate_pools import read_chats, simulate_pools
        from engine.lab.simulation.simulate_traces import (
            SimulationSettings,
            read_shares,
            require_shape,
            simulate_traces,
        )
        from engine.lab.simulation.simulated_pace import simulated_pace
        from engine.loading import locate_model
        from engine.routing.predictors.weights_file import read_predictor
        from engine.routing.traces.trace_set import read_traces

        shares = read_shares(budget)
        pace = simulated_pace(gpu, token_ms, link)
        files = locate_model(load_settings({"model": model}).engine_options()["model"], on_progress)
        checkpoint = open_checkpoint(files.path)
        index = checkpoint.index
        recorded = read_traces([traces])
        require_shape(recorded, index.experts_per_layer)
        stored = None if predictor is None else read_predictor(predictor, recorded.model)
        settings = SimulationSettings(
            shares=shares,
            links=listed(pace.link),
            policies=listed(policies),
            token_seconds=pace.token_seconds(checkpoint),
            expert_bytes=index.slot_bytes,
            prediction_seconds=prediction_ms / 1e3,
            emulated=pace.label,
        )
        if chats is not None:
            pools = read_chats(chats)
            return simulate_pools(recorded.traces[:take], recorded.shape, pools, settings, stored, on_progress)
        return simulate_traces(recorded.traces[:take], recorded.shape, settings, stored, on_progress)

    present(work, _show, as_json)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    in_pools = "chats" in report["runs"][0]
    table = Table(
        *(["chats"] if in_pools else []), "budget", "link", "policy", "tokens/s", "stall", "hit", "late", "MB/token"
    )
    for run in report["runs"]:
        table.add_row(
            *([str(run["chats"])] if in_pools else []),
            run["budget"],
            f"{run['link_bytes_per_second'] / 1e9:.2f} GB/s",
            run["policy"],
            f"{run['tokens_per_second']:.2f}",
            f"{run['stall_share']:.0%}",
            f"{run['hit_rate']:.0%}",
            f"{run['late_rate']:.0%}",
            f"{run['bytes_per_token'] / 1e6:.1f}",
        )
    Console().print(table)
    if emulated := report["settings"]["emulated"]:
        print(
            f"Simulated: {emulated}, whose computing takes the least time its memory's bandwidth allows "
            f"({1e3 * report['settings']['token_seconds']:.3g} ms a token) and whose link is as fast as cards of its "
            "kind reach: a real one is slower."
        )
        return
    print("Simulated: computing takes what --token-ms says, so only the ratios of these speeds mean something.")
