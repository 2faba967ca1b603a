"""The naive ExpertProvider: every expert in memory, nothing evicted, nothing to wait for.

The oracle that the cache is tested against, and the provider for measuring computation alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from engine.model.experts import ExpertWeights, number_of_experts


@dataclass(frozen=True)
class ResidentExpert:
    """One expert's parameters, copied side by side into memory of their own."""

    memory: torch.Tensor
    tensors: dict[str, torch.Tensor]
    address: int
    on_host: bool = False


class ResidentLease:
    """All experts are ready at once."""

    def __init__(self, experts: Sequence[tuple[int, ExpertWeights]]) -> None:
        self._experts = experts

    def __enter__(self) -> ResidentLease:
        return self

    def __exit__(self, *exception: object) -> None:
        self._experts = []

    def next_batch(self) -> Sequence[tuple[int, ExpertWeights]]:
        batch, self._experts = self._experts, []
        return batch


class ResidentExperts:
    """All experts of a stock model (one that has its expert parameters), each with the model's own dtype."""

    def __init__(self, experts_modules: Sequence[nn.Module], dtype: torch.dtype | None = None) -> None:
        self._layers = [
            [_resident(module, expert, dtype) for expert in range(number_of_experts(module))]
            for module in experts_modules
        ]

    def observe(self, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> None:
        """Nothing here depends on the routing."""

    def acquire(self, layer: int, experts: Sequence[int]) -> ResidentLease:
        return ResidentLease([(expert, self._layers[layer][expert]) for expert in experts])


def find_experts(model: nn.Module) -> tuple[nn.Module, ...]:
    """The model's experts modules in forward order: those that transformers dispatches through its seam."""
    return tuple(m for name, m in model.named_modules() if name.endswith("experts") and hasattr(m, "has_gate"))


def _resident(module: nn.Module, expert: int, dtype: torch.dtype | None) -> ResidentExpert:
    parts = {name: p.detach()[expert] for name, p in module.named_parameters(recurse=False)}
    parts = {name: part if dtype is None else part.to(dtype) for name, part in parts.items()}
    memory = torch.empty(sum(-(-part.nbytes // 64) * 64 for part in parts.values()), dtype=torch.uint8)
    tensors, offset = {}, 0
    for name, part in parts.items():
        tensors[name] = memory[offset : offset + part.nbytes].view(part.dtype).view(part.shape).copy_(part)
        offset += -(-part.nbytes // 64) * 64
    return ResidentExpert(memory, tensors, memory.data_ptr())
