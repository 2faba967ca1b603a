"""Trains a network that predicts routing on recorded conversations, until it no longer gets better on others.

A run can be left and taken up again at any saved step and ends in the same weights: the order of the batches and
the dropout of a step depend on the seed and the step's number alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.errors import Cancelled
from engine.routing.predictors.network import PredictorNetwork
from engine.routing.training.training_loss import loss_of
from engine.routing.training.training_state import load_state, save_state
from engine.routing.training.windows import Batch, Windows

WARM_UP_STEPS = 50
PACED_STEPS = 5, 15  # from and to which step a run limited in time measures its pace
TIME_FOR_STEPS = 0.85  # of that time; the rest is for measuring
SAVE_SECONDS = 120
MEASURED_BATCHES = 16

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the result, besides the data and the network.

    later_weight: what a row about a later token counts beside row 0; patience: measurements without a new best before
    it ends; minutes: fewer steps than `steps` where they would take longer (the result then depends on the machine's
    pace).
    """

    steps: int = 4000
    batch: int = 16
    window: int = 96
    rate: float = 3e-3
    weight_decay: float = 0.02
    later_weight: float = 0.3
    measure_every: int = 100
    patience: int = 8
    seed: int = 0
    minutes: float | None = None


@dataclass
class TrainingState:
    """How far a run has come. `measured`: (step, validation recall) of each measurement."""

    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    pace_began: float = 0.0
    best_recall: float = -1.0
    best_step: int = 0
    measured: list[tuple[int, float]] = field(default_factory=list)


def train(
    network: PredictorNetwork,
    training: Windows,
    validation: Windows,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
    on_progress: Progress | None = None,
    must_stop: Callable[[], bool] = lambda: False,
    has_learnt: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> TrainingState:
    """Leaves the network with the weights of the best validation recall (of row 0 at top k); where it `has_learnt`
    before, perhaps those it came with.

    Goes on from `checkpoint` where that is there (InvalidSetting if other settings made it) and saves to it now and
    then. Raises Cancelled, after saving, once `must_stop` says so. `clock` tells the seconds that `minutes` counts.
    """
    decayed = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, settings.rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay)
    state, best = TrainingState(steps=settings.steps), _weights(network)
    facts = asdict(settings) | {"tokens": sum(map(len, training.traces)), "shape": network.shape.to_dict()}
    if checkpoint is not None and checkpoint.exists():
        state, best = load_state(checkpoint, facts, network, adam)
    if has_learnt and not state.measured:
        best = _measure(network, validation, state, best)  # steps may make it worse
    began, saved_at = clock() - state.seconds, clock()
    with torch.random.fork_rng(devices=[]):
        for batch in _batches(training, settings, state.step):
            if _is_over(state, settings):
                break
            torch.manual_seed(settings.seed * 1_000_003 + state.step)
            _set_rate(adam, settings, state)
            _step(network, adam, training.load(batch), settings)
            state.step += 1
            state.seconds = clock() - began
            _keep_pace(state, settings)
            if state.step % settings.measure_every == 0 or state.step == state.steps:
                best = _measure(network, validation, state, best)
            if on_progress:
                on_progress(_stage(state), state.step, state.steps)
            stopping = must_stop()
            if checkpoint is not None and (stopping or clock() - saved_at > SAVE_SECONDS):
                save_state(checkpoint, facts, state, best, network, adam)
                saved_at = clock()
            if stopping:
                raise Cancelled
    network.load_state_dict(best)
    network.eval()
    return state


@torch.no_grad()
def recall_of(network: PredictorNetwork, windows: Windows, most: int = MEASURED_BATCHES) -> float:
    """Share of the used experts among the top k of row 0, over up to `most` batches spread over the windows."""
    network.eval()
    found = used = 0.0
    for batch in spread(windows.in_order(), most):
        loaded = windows.load(batch)
        odds = network(loaded)[:, :, 0][loaded.inside]
        true = loaded.used[:, : loaded.inside.shape[1]][loaded.inside]
        top = odds.topk(network.shape.top_k, dim=-1).indices
        found += float(true.gather(-1, top).sum())
        used += float(true.sum())
    return found / max(used, 1.0)


def spread(batches: Sequence[list[tuple[int, int]]], most: int) -> list[list[tuple[int, int]]]:
    """Up to `most` of the batches, evenly apart."""
    count = min(most, len(batches))
    return [batches[i * len(batches) // count] for i in range(count)]


def _batches(windows: Windows, settings: TrainingSettings, first: int) -> Iterator[list[tuple[int, int]]]:
    """Endless; from the `first` on."""
    epoch, passed = 0, 0
    while True:
        batches = windows.epoch(settings.seed, epoch)
        yield from batches[max(first - passed, 0) :]
        epoch, passed = epoch + 1, passed + len(batches)


def _step(network: PredictorNetwork, adam: torch.optim.Optimizer, batch: Batch, settings: TrainingSettings) -> None:
    network.train()
    adam.zero_grad(set_to_none=True)
    loss_of(network(batch), batch, settings.later_weight, network.listwise).backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    adam.step()


def _set_rate(adam: torch.optim.Optimizer, settings: TrainingSettings, state: TrainingState) -> None:
    """A short rise, then half a cosine down to a hundredth."""
    rise = min(1.0, (state.step + 1) / WARM_UP_STEPS)
    fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(state.step / state.steps, 1.0)))
    for group in adam.param_groups:
        group["lr"] = settings.rate * rise * fall


def _measure(
    network: PredictorNetwork, validation: Windows, state: TrainingState, best: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    recall = recall_of(network, validation)
    state.measured.append((state.step, recall))
    if recall <= state.best_recall:
        return best
    state.best_recall, state.best_step = recall, state.step
    return _weights(network)


def _keep_pace(state: TrainingState, settings: TrainingSettings) -> None:
    """Once the pace is known, plans as many steps as the time allows, so that the rate falls in time."""
    first, last = PACED_STEPS
    if settings.minutes is None:
        return
    if state.step == first:
        state.pace_began = state.seconds
    elif state.step == last:
        pace = (state.seconds - state.pace_began) / (last - first)
        state.steps = max(last + 1, min(settings.steps, int(60 * settings.minutes * TIME_FOR_STEPS / pace)))


def _is_over(state: TrainingState, settings: TrainingSettings) -> bool:
    without_best = sum(step > state.best_step for step, _ in state.measured)
    late = settings.minutes is not None and state.measured and state.seconds > 60 * settings.minutes
    return state.step >= state.steps or without_best >= settings.patience or bool(late)


def _weights(network: PredictorNetwork) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _stage(state: TrainingState) -> str:
    known = f" (recall {state.best_recall:.3f} so far)" if state.best_recall >= 0 else ""
    return f"Training{known}"
