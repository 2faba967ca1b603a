"""Perplexity and expert load of calibrated or trained parts on the held-out texts, without building.

python -m scripts.builtin.evaluate parts.npz trained.pt --every 4
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from engine.checkpoint.builtin.dense import dense_gguf_path
from engine.lab.held_out import MAX_PASSAGE_TOKENS, Passage, load_chats, load_documentation
from scripts.builtin.student import DenseLayers, Student, Trained


def loss(dense: DenseLayers, passages: list[Passage], streams) -> float:
    """Mean loss of the counted tokens; `streams(ids)` yields the residual stream after each layer."""
    total = 0.0
    for passage in passages:
        ids = torch.tensor(passage.ids)
        last = list(streams(ids[None]))[-1]
        losses = F.cross_entropy(dense.logits(last)[0, :-1], ids[1:], reduction="none")
        total += float(losses[torch.tensor(passage.counted)[1:]].sum())
    return total / sum(sum(passage.counted) for passage in passages)


def without_balance(streams: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterable[torch.Tensor]:
    return (stream for stream, _ in streams)


def shuffle(student: Student) -> None:
    """Gives every expert's place to another."""
    generator = torch.Generator().manual_seed(0)
    for layer in student.layers:
        layer.router.copy_(layer.router[torch.randperm(len(layer.router), generator=generator)])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, nargs="+")
    parser.add_argument("--every", type=int, default=1, help="use one passage in this many")
    args = parser.parse_args()
    gguf = dense_gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    sets = {"chats": load_chats(tokenizer), "documentation": load_documentation(tokenizer)}
    sets = {name: passages[:: args.every] for name, passages in sets.items()}
    dense = DenseLayers(MAX_PASSAGE_TOKENS)
    best = {name: loss(dense, passages, dense.streams) for name, passages in sets.items()}
    for name, value in best.items():
        print(f"dense {name}: {np.exp(value):.3f}")
    for path in args.parts:
        student = Student(dense, Trained.load(path).layers)
        for name, passages in sets.items():
            for layer in student.layers:
                layer.uses.zero_()
            ours = loss(dense, passages, lambda ids: without_balance(student.streams(ids)))  # noqa: B023
            uses = torch.stack([layer.uses for layer in student.layers])
            busiest = float((uses.amax(1) / uses.mean(1)).max())
            print(f"{path.name} {name}: x {np.exp(ours - best[name]):.3f}, busiest {busiest:.2f} x mean", flush=True)
        shuffle(student)
        for name, passages in sets.items():
            ours = loss(dense, passages, lambda ids: without_balance(student.streams(ids)))  # noqa: B023
            print(f"{path.name} {name}, experts shuffled: x {np.exp(ours - best[name]):.3f}", flush=True)


if __name__ == "__main__":
    main()
