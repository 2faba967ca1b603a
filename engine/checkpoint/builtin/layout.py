"""Which tensor of the built-in model lies where: experts first and together, shard by shard."""

from __future__ import annotations

from dataclasses import dataclass

from engine.checkpoint.builtin.dense import DenseWeights
from engine.checkpoint.builtin.recipe import Recipe
from engine.checkpoint.builtin.shard import TensorEntry, header_bytes

LAYERS_PER_SHARD = 6
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shard:
    """One file: the layers whose experts it holds (none for the file of everything else) and its tensors."""

    name: str
    layers: range
    entries: tuple[TensorEntry, ...]

    @property
    def data_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries)

    @property
    def size_bytes(self) -> int:
        return len(header_bytes(self.entries)) + self.data_bytes


def expert_prefix(layer: int, expert: int) -> str:
    return f"model.layers.{layer}.block_sparse_moe.experts.{expert}"


def expert_entries(layer: int, recipe: Recipe) -> list[TensorEntry]:
    """Gate, up and down of each expert of a layer, adjacent."""
    rows, hidden = recipe.kept_neurons, recipe.hidden_size
    return [
        TensorEntry(f"{expert_prefix(layer, expert)}.{name}.weight", shape)
        for expert in range(recipe.experts)
        for name, shape in (("w1", (rows, hidden)), ("w3", (rows, hidden)), ("w2", (hidden, rows)))
    ]


def dense_entries(dense: DenseWeights, recipe: Recipe) -> list[TensorEntry]:
    """Everything that is not an expert."""
    hidden = dense.hidden_size
    kv = hidden // dense.heads * dense.kv_heads
    entries = [TensorEntry("model.embed_tokens.weight", (dense.vocab_size, hidden))]
    for layer in range(recipe.layers):
        prefix = f"model.layers.{layer}"
        entries += [
            TensorEntry(f"{prefix}.input_layernorm.weight", (hidden,)),
            TensorEntry(f"{prefix}.self_attn.q_proj.weight", (hidden, hidden)),
            TensorEntry(f"{prefix}.self_attn.k_proj.weight", (kv, hidden)),
            TensorEntry(f"{prefix}.self_attn.v_proj.weight", (kv, hidden)),
            TensorEntry(f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)),
            TensorEntry(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
            TensorEntry(f"{prefix}.block_sparse_moe.gate.weight", (recipe.experts, hidden)),
        ]
    return [*entries, TensorEntry("model.norm.weight", (hidden,))]


def plan_shards(dense: DenseWeights, recipe: Recipe) -> list[Shard]:
    """Files in the order in which they are written."""
    groups = [
        range(first, min(first + LAYERS_PER_SHARD, recipe.layers))
        for first in range(0, recipe.layers, LAYERS_PER_SHARD)
    ]
    contents = [(group, [e for layer in group for e in expert_entries(layer, recipe)]) for group in groups]
    contents.append((range(0), dense_entries(dense, recipe)))
    return [
        Shard(f"model-{number:05d}-of-{len(contents):05d}.safetensors", layers, tuple(entries))
        for number, (layers, entries) in enumerate(contents, start=1)
    ]


def weight_index(shards: list[Shard]) -> dict[str, object]:
    """Contents of ``model.safetensors.index.json``."""
    return {
        "metadata": {"total_size": sum(shard.data_bytes for shard in shards)},
        "weight_map": {entry.name: shard.name for shard in shards for entry in shard.entries},
    }
