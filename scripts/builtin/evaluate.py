"""Perplexity and routing of calibrated or trained parts on the held-out texts, without building.

    python -m scripts.builtin.evaluate parts.npz trained.pt --every 4
    python -m scripts.builtin.evaluate trained.pt --table chats.npz

With `--table`, what a table by token id, fitted on 36,000 tokens of those chats, recalls of the held-out routing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from engine.checkpoint.builtin.dense import dense_gguf_path
from engine.lab.held_out import MAX_PASSAGE_TOKENS, Passage, load_chats, load_documentation
from engine.lab.routing_statistics import (
    Routing,
    adjacent_overlap,
    cache_hit_rates,
    expert_counts,
    max_over_mean_load,
    token_table_recall,
)
from scripts.builtin.calibrate import EXPERTS
from scripts.builtin.dense_forward import load_tokens
from scripts.builtin.student import DenseLayers, Student, Trained

TABLE_TOKENS = 36_000
Streams = Callable[[torch.Tensor], Iterable[torch.Tensor]]


def loss(dense: DenseLayers, passages: list[Passage], streams: Streams) -> float:
    """Mean loss of the counted tokens; `streams(ids)` yields the residual stream after each layer."""
    total = 0.0
    for passage in passages:
        ids = torch.tensor(passage.ids)
        last = list(streams(ids[None]))[-1]
        losses = F.cross_entropy(dense.logits(last)[0, :-1], ids[1:], reduction="none")
        total += float(losses[torch.tensor(passage.counted)[1:]].sum())
    return total / sum(sum(passage.counted) for passage in passages)


class Recorded:
    """Streams of a student; keeps the routing of each pass."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self.routing: list[Routing] = []

    def __call__(self, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        for stream, _ in self._student.streams(ids):
            yield stream
        chosen = [layer.chosen for layer in self._student.layers]
        self.routing.append(torch.stack(chosen, dim=1).numpy())


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
    parser.add_argument("--table", type=Path, help="chats to fit the table on")
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
            recorded = Recorded(student)
            ours = loss(dense, passages, recorded)
            busiest = max_over_mean_load(expert_counts(recorded.routing, EXPERTS))
            overlap = adjacent_overlap(recorded.routing)
            print(f"{path.name} {name}: x {np.exp(ours - best[name]):.3f}, busiest {busiest:.2f} x mean", end=", ")
            print(f"adjacent overlap {overlap:.2f}", flush=True)
            if args.table and name == "chats":
                print_routing(student, passages, recorded.routing, load_tokens(args.table))
        shuffle(student)
        for name, passages in sets.items():
            ours = loss(dense, passages, Recorded(student))
            print(f"{path.name} {name}, experts shuffled: x {np.exp(ours - best[name]):.3f}", flush=True)


def print_routing(student: Student, passages: list[Passage], routing: list[Routing], tokens: np.ndarray) -> None:
    """What caches and a table by token id make of the routing of chats."""
    fitted = Recorded(student)
    rows = tokens[: -(-TABLE_TOKENS // tokens.shape[1])]
    for row in rows:
        list(fitted(torch.from_numpy(row[None]).long()))
    known = list(zip(rows.tolist(), fitted.routing, strict=True))
    asked = [(passage.ids, chosen) for passage, chosen in zip(passages, routing, strict=True)]
    print(f"  table by token id, fitted on {rows.size} tokens: recall {token_table_recall(known, asked, EXPERTS):.3f}")
    for policy, rates in cache_hit_rates(routing[::4], EXPERTS).items():
        print(f"  {policy}: " + ", ".join(f"{rate:.2f} at {share}" for share, rate in rates.items()), flush=True)


if __name__ == "__main__":
    main()
