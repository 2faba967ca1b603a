"""`train-predictor`: learns from recorded routing which experts a token will use."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from app.terminal import AsJson, command, present
from app.terminal_progress import Progress

Traces = Annotated[list[Path], typer.Option(help="A file of recorded routing; may be given again.")]


@command
def train_predictor(
    traces: Traces,
    out: Annotated[Path, typer.Option(help="Where the predictor is written.")],
    model: Annotated[
        str | None,
        typer.Option(help="The model that was recorded: its token embedding helps with tokens seldom seen."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="A trained predictor that learns on; the options about sizes are then its own.")
    ] = None,
    kind: Annotated[str, typer.Option(help="recurrent, or token-transformer to compare with.")] = "recurrent",
    minutes: Annotated[float, typer.Option(min=0.01, help="Most time to train.")] = 30.0,
    steps: Annotated[
        int,
        typer.Option(min=0, help="Most steps to train; with --start and 0, only the networks beside the predictor do."),
    ] = 20_000,
    measure_every: Annotated[int, typer.Option(min=1, help="Steps between two looks at validation recall.")] = 100,
    window: Annotated[int, typer.Option(min=2, help="Tokens the network is trained on at a time.")] = 96,
    batch: Annotated[int, typer.Option(min=1, help="Windows of a step.")] = 16,
    rate: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 3e-3,
    horizon: Annotated[int, typer.Option(min=1, help="Tokens predicted, the one whose id is known included.")] = 2,
    token_width: Annotated[int, typer.Option(min=1, help="Numbers kept for each token.")] = 96,
    state_width: Annotated[int, typer.Option(min=1, help="Numbers that remember the conversation.")] = 384,
    dropout: Annotated[float, typer.Option(min=0, max=0.9, help="More of it for fewer traces.")] = 0.2,
    no_hidden: Annotated[bool, typer.Option("--no-hidden", help="Do without the model's residual stream.")] = False,
    prompts_too: Annotated[bool, typer.Option("--prompts-too", help="Measure on prompts as well.")] = False,
    seed: int = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to train on.", show_default="all")] = None,
    as_json: AsJson = False,
) -> None:
    """Trains a predictor of routing. Ctrl-C leaves a checkpoint; the same command goes on from there."""

    def work(on_progress: Progress) -> dict[str, Any]:
        on_progress("Reading traces", 0, 0)
        import torch

        from engine.errors import Cancelled
        from engine.routing.predictors.recurrent_network import RecurrentSizes
        from engine.routing.predictors.weights_file import read_predictor
        from engine.routing.traces.trace_set import read_traces
        from engine.routing.training.predictor_training import PredictorTraining, train_predictor
        from engine.routing.training.train import TrainingSettings

        if threads is not None:
            torch.set_num_threads(threads)
        settings = TrainingSettings(
            steps=steps,
            minutes=minutes,
            window=window,
            batch=batch,
            rate=rate,
            seed=seed,
            measure_every=measure_every,
        )
        sizes = RecurrentSizes(horizon, token_width, state_width, state_width, dropout=dropout)
        recorded = read_traces(traces)
        known = None if start is None else read_predictor(start, recorded.model)
        training = PredictorTraining(
            kind, sizes, settings, use_hidden=not no_hidden, prompts_too=prompts_too, start=known
        )
        with _interrupts() as interrupted:
            try:
                return train_predictor(recorded, out, training, _embedding(model), on_progress, interrupted)
            except Cancelled:
                print("The same command goes on from here.", file=sys.stderr)
                raise KeyboardInterrupt from None

    present(work, _show, as_json)


def _embedding(model: str | None) -> Any:
    if model is None:
        return None
    from engine.checkpoint.catalog import resolve_model
    from engine.checkpoint.token_embedding import read_token_embedding

    return read_token_embedding(resolve_model(model))


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Says whether Ctrl-C was pressed, so that the step in progress ends first; a second one does not wait."""
    pressed: list[int] = []

    def press(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    from app.bench_tables import show_predictors

    history = report["history"]
    Console().print(
        f"{report['file']}: {report['bytes'] / 1e6:.1f} MB, {history['steps']} steps in {history['seconds']:.0f} s on "
        f"{history['tokens']['train']:,} tokens. On {history['conversations']['test']} unseen conversations:",
        highlight=False,
    )
    show_predictors({"runs": [{"predictor": report["kind"], **report["test"]}]})
