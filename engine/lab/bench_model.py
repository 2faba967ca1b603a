"""How good the built-in model is, against the dense model it was carved from: ``bench model``.

Both run in stock ``transformers``, fp32, on the held-out texts in ``assets/heldout``.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.checkpoint.builtin import builtin_path, ensure_builtin
from engine.checkpoint.builtin.builder import build
from engine.checkpoint.builtin.dense import DenseWeights, dense_gguf_path
from engine.checkpoint.builtin.recipe import load_recipe
from engine.lab.held_out import Passage, load_chats, load_documentation
from engine.lab.routing_statistics import (
    Routing,
    adjacent_overlap,
    cache_hit_rates,
    entropy_per_layer,
    expert_counts,
    max_over_mean_load,
)

Progress = Callable[[str, int, int], None]
SHUFFLE_SEED = 0
REPLAYED = 4  # one passage in so many is replayed through caches, which takes its time


def run(on_progress: Progress | None = None) -> dict[str, Any]:
    """Perplexities, expert load and routing on each held-out set, and what the model costs to build and keep.

    ``max_over_mean_load`` is that of the worst layer; ``expert_share`` is of the stored weights; ``routing`` as in
    `engine.lab.routing_statistics`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = on_progress or (lambda stage, done, total: None)
    build_seconds = measure_build(report)
    folder = ensure_builtin(report)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sets = {"chats": load_chats(tokenizer), "documentation": load_documentation(tokenizer)}
    gguf = dense_gguf_path()
    dense = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    results: dict[str, Any] = {"perplexity_dense": _perplexities(dense, sets, "dense", report)}
    del dense
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    results |= {"perplexity_moe": {}, "max_over_mean_load": {}, "routing": {}}
    with RoutingTap(model) as tap:
        for name, passages in sets.items():
            results["perplexity_moe"][name] = perplexity(model, passages, f"built-in, {name}", report)
            routing = tap.take()
            counts = expert_counts(routing, model.config.num_experts)
            results["max_over_mean_load"][name] = max_over_mean_load(counts)
            report(f"replaying the routing of {name}", 0, 0)
            results["routing"][name] = {
                "adjacent_overlap": adjacent_overlap(routing),
                "entropy_per_layer": entropy_per_layer(counts),
                "hit_rates": cache_hit_rates(routing[::REPLAYED], model.config.num_experts),
            }
    shuffle_experts(model)
    results["perplexity_shuffled"] = _perplexities(model, sets, "experts shuffled", report)
    ratio = {name: results["perplexity_moe"][name] / results["perplexity_dense"][name] for name in sets}
    return results | {
        "perplexity_moe_over_dense": ratio,
        "held_out_tokens": {name: sum(len(p.ids) for p in passages) for name, passages in sets.items()},
        "counted_tokens": {name: sum(sum(p.counted) for p in passages) for name, passages in sets.items()},
        "expert_share": expert_share(folder),
        "build_seconds": build_seconds,
        "bytes_on_disk": sum(path.stat().st_size for path in folder.iterdir()),
    }


def measure_build(report: Progress) -> float:
    """Seconds that a build of the model takes, beside the one in use, which is left alone."""
    parent = builtin_path().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".measuring-", dir=parent) as folder:
        started = time.perf_counter()
        build(Path(folder) / "model", load_recipe(), DenseWeights(), report)
        return time.perf_counter() - started


def _perplexities(model: Any, sets: dict[str, list[Passage]], label: str, report: Progress) -> dict[str, float]:
    return {name: perplexity(model, passages, f"{label}, {name}", report) for name, passages in sets.items()}


@torch.inference_mode()
def perplexity(model: Any, passages: list[Passage], stage: str, report: Progress) -> float:
    """exp of the mean negative log-likelihood of the counted tokens, each passage read by itself."""
    loss = 0.0
    for done, passage in enumerate(passages):
        report(stage, done, len(passages))
        ids = torch.tensor(passage.ids)
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        counted = torch.tensor(passage.counted)[1:]
        loss += float(torch.nn.functional.cross_entropy(logits[counted], ids[1:][counted], reduction="sum"))
    report(stage, len(passages), len(passages))
    return math.exp(loss / sum(sum(passage.counted) for passage in passages))


class RoutingTap:
    """Keeps which experts each token chose, passage by passage, while the context is open."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._handles: list[Any] = []
        self._layers: list[np.ndarray] = []
        self.passages: list[Routing] = []

    def take(self) -> list[Routing]:
        """Routing [tokens, layers, top k] of each forward pass since the last call."""
        passages, self.passages = self.passages, []
        return passages

    def __enter__(self) -> RoutingTap:
        layers = self._model.model.layers
        for index, layer in enumerate(layers):
            hook = self._keeper(last=index == len(layers) - 1)
            self._handles.append(layer.mlp.experts.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keeper(self, last: bool) -> Callable[..., None]:
        def keep(module: Any, arguments: tuple[Any, ...]) -> None:
            self._layers.append(arguments[1].numpy())
            if last:
                self.passages.append(np.stack(self._layers, axis=1))
                self._layers = []

        return keep


def shuffle_experts(model: Any) -> None:
    """Give every expert's place in its layer to another; permuting the router's rows does just that."""
    generator = torch.Generator().manual_seed(SHUFFLE_SEED)
    with torch.no_grad():
        for layer in model.model.layers:
            weight = layer.mlp.gate.weight
            weight.copy_(weight[torch.randperm(len(weight), generator=generator)])


def expert_share(folder: Path) -> float:
    """Share of the stored weights that lies in experts."""
    from safetensors import safe_open

    expert_weights = all_weights = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - the handle is no mapping
                weights = math.prod(shard.get_slice(name).get_shape())
                all_weights += weights
                expert_weights += weights if ".experts." in name else 0
    return expert_weights / all_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    print(json.dumps(run(), indent=None if args.json else 2))


if __name__ == "__main__":
    main()
