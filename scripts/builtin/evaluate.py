"""Perplexity of calibrated parts on the held-out texts, without building: for comparing constructions.

python -m scripts.builtin.evaluate parts.npz --every 4
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from engine.checkpoint.builtin.dense import dense_gguf_path
from engine.lab.held_out import Passage, load_chats, load_documentation
from scripts.builtin.calibrate import EXPERTS, activations, route
from scripts.builtin.dense_forward import DenseForward


def losses(model: DenseForward, passages: list[Passage], feed_forward=None) -> tuple[float, float]:
    """Mean loss of the counted tokens, and of all but the first."""
    counted = everything = 0.0
    for passage in passages:
        ids = torch.tensor(passage.ids)
        logits = model.logits(model.hidden(ids[None], 0, feed_forward=feed_forward))[0, :-1]
        loss = F.cross_entropy(logits, ids[1:], reduction="none")
        counted += float(loss[torch.tensor(passage.counted)[1:]].sum())
        everything += float(loss.sum())
    tokens = sum(len(p.ids) - 1 for p in passages)
    return counted / sum(sum(p.counted) for p in passages), everything / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, nargs="+")
    parser.add_argument("--every", type=int, default=1, help="use one passage in this many")
    args = parser.parse_args()
    gguf = dense_gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    sets = {"chats": load_chats(tokenizer), "documentation": load_documentation(tokenizer)}
    sets = {name: passages[:: args.every] for name, passages in sets.items()}
    model = DenseForward(1, 1024)
    dense = {name: losses(model, passages) for name, passages in sets.items()}
    for name, (counted, everything) in dense.items():
        print(f"dense {name}: {np.exp(counted):.3f} counted, {np.exp(everything):.3f} all")
    for path in args.parts:
        parts = {key: torch.from_numpy(value).float() for key, value in np.load(path).items() if value.ndim}
        scales = parts["masks"] * parts["gains"]
        for name, passages in sets.items():
            load = torch.zeros(len(scales), EXPERTS)

            def feed_forward(index: int, x: torch.Tensor) -> torch.Tensor:
                weights = model.layers[index]
                routing = route(x[0], parts["routers"][index])  # noqa: B023 - used within the round
                load[index] += (routing > 0).sum(0)  # noqa: B023
                scale = routing @ scales[index]  # noqa: B023
                return F.linear(activations(x[0], weights) * scale, weights["down"])[None]

            counted, everything = losses(model, passages, feed_forward)
            busiest = (load.amax(1) / load.sum(1)).max() * EXPERTS
            print(
                f"{path.name} {name}: x {np.exp(counted - dense[name][0]):.3f} counted, "
                f"x {np.exp(everything - dense[name][1]):.3f} all, busiest {busiest:.2f} x mean"
            )


if __name__ == "__main__":
    main()
