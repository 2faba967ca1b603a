"""Trains each layer's routers, gains and low-rank corrections to give what the dense layer gives for its inputs.

    python -m scripts.builtin.fit_layers parts.npz --tokens chats.npz documentation.npz --out fitted.pt

Layer by layer, on the dense model's own residual stream: a step costs a quarter of one of `distill`, which goes on
from here. The error of a token counts in proportion to its residual stream, as the norm that follows sees it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from scripts.builtin.dense_forward import DenseForward, load_tokens, rms_norm
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


@dataclass(frozen=True)
class Examples:
    """What one layer gets and gives: inputs [tokens, hidden], dense pre-activations [tokens, intermediate].

    `scale` [tokens, 1] is one over the length of the residual stream.
    """

    x: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    scale: torch.Tensor


def fit_layer(layer: ExpertLayer, examples: Examples, down: torch.Tensor, fitting: Fitting) -> tuple[float, float]:
    """Mean squared error of the first and of the last tenth of the steps, relative to the residual stream."""
    adam = make_optimiser([layer], fitting.learning_rate, fitting.router_rate)
    tokens, errors = len(examples.x), []
    batches = tokens // fitting.batch_tokens
    for _ in range(fitting.epochs):
        for batch in torch.randperm(tokens).split(fitting.batch_tokens)[:batches]:
            set_rates(adam, len(errors), fitting.epochs * batches, WARM_UP_STEPS)
            gate, up = examples.gate[batch], examples.up[batch]
            neurons, added, balance = layer.mix(examples.x[batch], gate, up)
            error = F.linear(neurons - F.silu(gate) * up, down) + added
            loss = (error * examples.scale[batch]).pow(2).sum(-1).mean()
            adam.zero_grad(set_to_none=True)
            (loss + fitting.balance_weight * loss.detach() * balance).backward()
            adam.step()
            errors.append(loss.item())
    tenth = max(len(errors) // 10, 1)
    return float(np.mean(errors[:tenth])), float(np.mean(errors[-tenth:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, help="what scripts.builtin.calibrate wrote")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="a file for each kind of text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--router-rate", type=float, default=1e-3)
    parser.add_argument("--balance-weight", type=float, default=0.3, help="as a share of the layer's error")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="stop after so many (to try settings)")
    args = vars(parser.parse_args())
    parts, out, last = args.pop("parts"), args.pop("out"), args.pop("layers")
    blocks = [rows for path in args.pop("tokens") for rows in torch.from_numpy(load_tokens(path)).long().split(16)]
    fitting = Fitting(**args)
    torch.manual_seed(fitting.seed)
    model = DenseForward(16, max(block.shape[1] for block in blocks))
    trained = Trained.load(parts, fitting.rank)
    trained.history["fitting"] = asdict(fitting) | {"tokens": sum(block.numel() for block in blocks)}
    streams = [F.embedding(block, model.embedding) for block in blocks]
    for index, weights in enumerate(model.layers[:last]):
        began = time.perf_counter()
        with torch.no_grad():
            for stream in streams:
                stream += model.attention(index, rms_norm(stream, weights["input_layernorm"], model.eps), 0)
            x = torch.cat([rms_norm(s, weights["post_attention_layernorm"], model.eps).flatten(0, 1) for s in streams])
            gate, up = F.linear(x, weights["gate"]), F.linear(x, weights["up"])
            outputs = F.linear(F.silu(gate) * up, weights["down"]).split([s[..., 0].numel() for s in streams])
            for stream, output in zip(streams, outputs, strict=True):
                stream += output.view_as(stream)
            scale = 1 / torch.cat([stream.flatten(0, 1) for stream in streams]).norm(dim=-1, keepdim=True)
        first, final = fit_layer(trained.layers[index], Examples(x, gate, up, scale), weights["down"], fitting)
        print(
            f"layer {index}: error {first:.5f} -> {final:.5f} ({final / first:.2f}), "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
    trained.save(out)


if __name__ == "__main__":
    main()
