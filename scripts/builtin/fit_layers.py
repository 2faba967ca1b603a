"""Trains each layer's routers, gains and low-rank corrections to give what the dense layer gives for its inputs.

    python -m scripts.builtin.fit_layers parts.npz --tokens chats.npz documentation.npz --out fitted.pt

Layer by layer, on the dense model's own residual stream: a step costs a quarter of one of `distill`, which goes on
from here. The error of a token counts in proportion to its residual stream, as the norm that follows sees it. Each
batch is of one kind of text, so that the load is balanced within each kind. What is fitted is saved after every layer;
the same command goes on from there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from scripts.builtin.layer_walk import LayerPass, Texts, walk_layers
from scripts.builtin.optimiser import make_optimiser, set_rates
from scripts.builtin.student import ExpertLayer, Trained

WARM_UP_STEPS = 10


@dataclass(frozen=True)
class Fitting:
    """What decides the result, besides the data."""

    rank: int
    epochs: int
    batch_tokens: int
    learning_rate: float
    router_rate: float
    balance_weight: float
    seed: int


def batches(kinds: list[slice], size: int) -> Iterator[torch.Tensor]:
    """Every token once, in batches of one kind of text each; what is left over of a kind is left out."""
    found = []
    for kind in kinds:
        order = kind.start + torch.randperm(kind.stop - kind.start)
        found += order.split(size)[: len(order) // size]
    for place in torch.randperm(len(found)).tolist():
        yield found[place]


def fit_layer(layer: ExpertLayer, walked: LayerPass, kinds: list[slice], fitting: Fitting) -> tuple[float, float]:
    """Mean squared error of the first and of the last tenth of the steps, relative to the residual stream."""
    adam = make_optimiser([layer], fitting.learning_rate, fitting.router_rate)
    errors: list[float] = []
    steps = fitting.epochs * sum((kind.stop - kind.start) // fitting.batch_tokens for kind in kinds)
    for _ in range(fitting.epochs):
        for batch in batches(kinds, fitting.batch_tokens):
            set_rates(adam, len(errors), steps, WARM_UP_STEPS)
            gate, up = walked.gate[batch], walked.up[batch]
            neurons, added, balance = layer.mix(walked.x[batch], gate, up)
            error = F.linear(neurons - F.silu(gate) * up, walked.weights["down"]) + added
            loss = (error / walked.stream_length[batch]).pow(2).sum(-1).mean()
            adam.zero_grad(set_to_none=True)
            (loss + fitting.balance_weight * loss.detach() * balance).backward()
            adam.step()
            errors.append(loss.item())
    tenth = max(len(errors) // 10, 1)
    return float(np.mean(errors[:tenth])), float(np.mean(errors[-tenth:]))


def resume(out: Path, parts: Path, settings: dict[str, float]) -> tuple[Trained, int]:
    """What an earlier run with these settings left at `out`, and how many layers it had fitted; else a fresh start."""
    if not out.exists():
        return Trained.load(parts, int(settings["rank"])), 0
    trained = Trained.load(out)
    done = trained.history["fitting"]
    if settings | {"layers": done["layers"]} != done:
        raise SystemExit(f"{out} was fitted with other settings ({done}): choose another --out.")
    return trained, done["layers"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, help="what scripts.builtin.calibrate wrote")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="a file for each kind of text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--router-rate", type=float, default=1e-3)
    parser.add_argument("--balance-weight", type=float, default=0.4, help="as a share of the layer's error")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="stop after so many (to try settings)")
    args = vars(parser.parse_args())
    parts, out, last = args.pop("parts"), args.pop("out"), args.pop("layers")
    texts = Texts.read(args.pop("tokens"))
    fitting = Fitting(**args)
    torch.manual_seed(fitting.seed)
    settings = asdict(fitting) | {"tokens": texts.tokens}
    trained, fitted = resume(out, parts, settings)
    for walked in islice(walk_layers(texts), last):
        if walked.index < fitted:
            continue
        began = time.perf_counter()
        first, final = fit_layer(trained.layers[walked.index], walked, texts.kinds, fitting)
        trained.history["fitting"] = settings | {"layers": walked.index + 1}
        trained.save(out)
        seconds = time.perf_counter() - began
        print(
            f"layer {walked.index}: error {first:.5f} -> {final:.5f} ({final / first:.2f}), {seconds:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
