"""Trains routers, gains and low-rank corrections of the experts to say what the dense model says.

    python -m scripts.builtin.distill parts.npz --tokens chats.npz documentation.npz --out trained.pt

End to end: the divergence between both models' next-token distributions, a little of the distance between their
residual streams (which guides the early layers), and a load-balance term. Ctrl-C ends after a saved step; the same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from scripts.builtin.dense_forward import load_tokens
from scripts.builtin.optimiser import make_optimiser, set_rates
from scripts.builtin.student import DenseLayers, Student, Trained

LOGIT_ROWS = 512  # rows of logits at a time: 100 MB each of the dense model's and the student's
WARM_UP_STEPS = 8
SAVE_SECONDS = 300


@dataclass(frozen=True)
class Training:
    """What decides the result, besides the data."""

    steps: int
    batch_rows: int
    learning_rate: float
    router_rate: float
    stream_weight: float
    balance_weight: float
    seed: int


def batches(tokens: list[np.ndarray], training: Training) -> Iterator[torch.Tensor]:
    """Endless batches [rows, tokens] of one kind of text each, kinds in proportion to their size."""
    random = np.random.default_rng(training.seed)
    while True:
        pieces = []
        for kind in tokens:
            order = random.permutation(len(kind))
            pieces += [kind[order[i : i + training.batch_rows]] for i in range(0, len(kind), training.batch_rows)]
        for place in random.permutation(len(pieces)):
            yield torch.from_numpy(pieces[place]).long()


def divergence(dense: DenseLayers, ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Mean KL(dense || student) and its gradient for the student's last stream, both [rows, tokens, hidden]."""
    ours, theirs = ours.detach().flatten(0, 1).requires_grad_(), theirs.flatten(0, 1)
    total = 0.0
    for start in range(0, len(ours), LOGIT_ROWS):
        rows = slice(start, start + LOGIT_ROWS)
        with torch.no_grad():
            target = F.log_softmax(dense.logits(theirs[rows]), dim=-1)
        said = F.log_softmax(dense.logits(ours[rows]), dim=-1)
        loss = F.kl_div(said, target, log_target=True, reduction="sum") / len(ours)
        loss.backward()
        total += loss.item()
    return total, ours.grad


def train_step(dense: DenseLayers, student: Student, ids: torch.Tensor, training: Training) -> dict[str, float]:
    """Accumulates the gradients of one batch. Returns the parts of the loss."""
    streams, balances = torch.zeros(()), torch.zeros(())
    for (ours, balance), theirs in zip(student.streams(ids), dense.streams(ids), strict=True):
        streams = streams + (ours - theirs).pow(2).mean() / theirs.pow(2).mean()
        balances = balances + balance
    layers = len(student.layers)
    kl, gradient = divergence(dense, ours, theirs)
    guide = training.stream_weight * streams / layers + training.balance_weight * balances / layers
    torch.autograd.backward([ours, guide], [gradient.view_as(ours), None])
    return {"kl": kl, "streams": streams.item() / layers, "balance": balances.item() / layers}


def resume(path: Path, trained: Trained, training: Training, optimiser: torch.optim.Optimizer) -> int:
    """Restores the state of an earlier run that ended at `path`. Returns the step to go on with."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=False)
    if saved["training"] != asdict(training):
        raise SystemExit(f"{path} was trained with other settings ({saved['training']}): choose another --out.")
    trained.layers.load_state_dict(saved["layers"])
    optimiser.load_state_dict(saved["optimiser"])
    return saved["step"]


def train(
    dense: DenseLayers,
    trained: Trained,
    tokens: list[np.ndarray],
    training: Training,
    out: Path,
    on_step: Callable[[int, dict[str, float]], None],
    must_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Goes on from `out` if that is there; saved there now and then, at the end, and before SystemExit when told to."""
    student = Student(dense, trained.layers)
    adam = make_optimiser(trained.layers, training.learning_rate, training.router_rate)
    first = resume(out, trained, training, adam)
    source, saved_at, seen = batches(tokens, training), time.monotonic(), 0
    for step in range(training.steps):
        ids = next(source)
        seen += ids.numel()
        if step < first:
            continue
        began = time.perf_counter()
        set_rates(adam, step, training.steps, WARM_UP_STEPS)
        losses = train_step(dense, student, ids, training)
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        rate = ids.numel() / (time.perf_counter() - began)
        on_step(step, losses | {"gradient": float(norm), "tokens/s": rate})
        stopping = must_stop()
        if stopping or step + 1 == training.steps or time.monotonic() - saved_at > SAVE_SECONDS:
            trained.history["distillation"] = asdict(training) | {"tokens": seen}
            trained.save(out, training=asdict(training), optimiser=adam.state_dict(), step=step + 1)
            saved_at = time.monotonic()
        if stopping:
            raise SystemExit(130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, help="what scripts.builtin.calibrate or .fit_layers wrote")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="a file for each kind of text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=4, help="of corrections that are not there yet")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-rows", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--router-rate", type=float, default=3e-4)
    parser.add_argument("--stream-weight", type=float, default=0.2)
    parser.add_argument("--balance-weight", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    args = vars(parser.parse_args())
    parts, out, rank = args.pop("parts"), args.pop("out"), args.pop("rank")
    tokens = [load_tokens(path) for path in args.pop("tokens")]
    training = Training(**args)
    torch.manual_seed(training.seed)
    trained = Trained.load(parts, rank)
    print(f"{sum(p.numel() for p in trained.layers.parameters()):,} parameters", flush=True)

    def print_step(step: int, losses: dict[str, float]) -> None:
        words = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        print(f"step {step + 1} of {training.steps}: {words}", flush=True)

    interrupts: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    dense = DenseLayers(max(kind.shape[1] for kind in tokens))
    train(dense, trained, tokens, training, out, print_step, lambda: bool(interrupts))


if __name__ == "__main__":
    main()
