"""Cutting experts out of the dense model and writing them, expert by expert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.checkpoint.builtin.dense import DenseWeights
from engine.checkpoint.builtin.layout import Shard, expert_prefix
from engine.checkpoint.builtin.recipe import Recipe
from engine.checkpoint.builtin.shard import ShardWriter, to_bf16

STORED_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}  # in the order in which they lie in the file


def write_shard(
    path: Path, shard: Shard, dense: DenseWeights, recipe: Recipe, on_written: Callable[[int], None]
) -> None:
    """Write one shard; ``on_written`` hears the bytes of each piece as it goes out."""
    with ShardWriter(path, shard.entries) as writer:
        for layer in shard.layers:
            _write_experts(writer, layer, dense, recipe, on_written)
        if not shard.layers:
            _write_dense(writer, dense, recipe, on_written)


def _write_experts(
    writer: ShardWriter, layer: int, dense: DenseWeights, recipe: Recipe, on_written: Callable[[int], None]
) -> None:
    parts = dense.feed_forward(layer)
    for expert, (kept, gain) in enumerate(zip(recipe.masks[layer], recipe.gains[layer], strict=True)):
        carved = {"gate": parts["gate"][kept], "up": parts["up"][kept], "down": (parts["down"] * gain)[:, kept]}
        for name, stored in STORED_NAMES.items():
            bits = to_bf16(carved[name] + recipe.corrections[name].of(layer, expert))
            writer.write(f"{expert_prefix(layer, expert)}.{stored}.weight", bits)
            on_written(bits.nbytes)


def _write_dense(writer: ShardWriter, dense: DenseWeights, recipe: Recipe, on_written: Callable[[int], None]) -> None:
    def write(name: str, values: np.ndarray) -> None:
        writer.write(f"model.{name}.weight", to_bf16(values))
        on_written(values.nbytes // 2)

    write("embed_tokens", dense.embedding())
    for layer in range(recipe.layers):
        attention, norms = dense.attention(layer), dense.norms(layer)
        write(f"layers.{layer}.input_layernorm", norms["input_layernorm"])
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            write(f"layers.{layer}.self_attn.{name}", attention[name])
        write(f"layers.{layer}.post_attention_layernorm", norms["post_attention_layernorm"])
        write(f"layers.{layer}.block_sparse_moe.gate", recipe.routers[layer])
    write("norm", dense.final_norm())
