"""Puts modules that compute in float32 from stored weights in the place of plain Linear and Embedding modules."""

from __future__ import annotations

from torch import nn

from engine.model.stored_linear import StoredEmbedding, StoredLinear


def store_modules(model: nn.Module, names: set[str]) -> None:
    """Replace the modules whose weights are in `names`; weights and modules that were shared stay shared."""
    replaced: dict[nn.Module, nn.Module] = {}
    for name in sorted(names):
        path = name.removesuffix(".weight")
        parent, _, leaf = path.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, (StoredLinear, StoredEmbedding)):
            continue
        if module not in replaced:
            replaced[module] = _stored(module)
        model.get_submodule(parent)._modules[leaf] = replaced[module]


def _stored(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return StoredLinear.from_linear(module)
    if isinstance(module, nn.Embedding):
        return StoredEmbedding.from_embedding(module)
    raise TypeError(f"{type(module).__name__} has no stored form")
