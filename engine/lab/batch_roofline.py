"""How close a joint step comes to what the machine can do at most: the weights read once, the products at full speed.

The bound of a step is the larger of two times: reading the experts that were touched and the dense weights once at the
speed of memory, and the matrix products of all rows at the speed of a large fp32 product. Both speeds are measured in
the same run. Keys and values, norms, routing and sampling are not in the bound; they cost throughput all the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from engine.checkpoint.expert_index import ExpertIndex
from engine.generation.joint_choice import Always
from engine.hardware.speed import working_set_bytes
from engine.model.stored_linear import StoredEmbedding

_REPEATS = 8
_PRODUCT_WIDTH = 1536


@dataclass(frozen=True)
class MachineLimits:
    """The most this machine was seen to do, with all its threads."""

    memory_bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True)
class ModelWork:
    """What a step reads and computes: of the dense matrices, and of one expert."""

    dense_bytes: int
    dense_parameters: int
    expert_bytes: float
    expert_parameters: float
    experts_per_token: int

    def step_seconds(self, rows: int, experts: float, limits: MachineLimits) -> tuple[float, float]:
        """Reading and computing, of a step of so many rows that touches so many experts in all its layers."""
        read = self.dense_bytes + experts * self.expert_bytes
        products = rows * (self.dense_parameters + self.experts_per_token * self.expert_parameters)
        return read / limits.memory_bytes_per_second, 2 * products / limits.flops_per_second


def measure_limits() -> MachineLimits:
    """The best of a few tries each."""
    numbers = torch.ones(working_set_bytes() // 4)
    matrix = torch.ones(_PRODUCT_WIDTH, _PRODUCT_WIDTH)
    return MachineLimits(
        numbers.nbytes / _least_seconds(lambda: numbers.sum()),
        2 * _PRODUCT_WIDTH**3 / _least_seconds(lambda: matrix @ matrix),
    )


def _least_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def model_work(model: nn.Module, index: ExpertIndex) -> ModelWork:
    """Of a loaded model whose experts are those of `index`."""
    embeddings = (nn.Embedding, StoredEmbedding)  # of which a step reads a row for each chat
    weights = [getattr(part, "weight", None) for part in model.modules() if not isinstance(part, embeddings)]
    matrices = [weight for weight in weights if isinstance(weight, torch.Tensor) and weight.dim() == 2]
    layers = len(index.experts_per_layer)
    shapes = [math.prod(parameter.shape) for layer in range(layers) for parameter in index.params(layer)]
    return ModelWork(
        sum(matrix.nbytes for matrix in matrices),
        sum(matrix.numel() for matrix in matrices),
        index.total_expert_bytes / sum(index.experts_per_layer),
        sum(shapes) / layers,
        index.top_k * layers,
    )


class RecordedSteps(Always):
    """Reads steps in one way and notes what each took. `activations`: the engine's count of experts used so far."""

    def __init__(self, joint: bool, activations: Callable[[], int]) -> None:
        super().__init__(joint)
        self._activations, self._before = activations, 0
        self._steps: list[tuple[int, float, int]] = []

    def joint(self, chats: int) -> bool:
        self._before = self._activations()
        return super().joint(chats)

    def took(self, chats: int, joint: bool, seconds: float) -> None:
        self._steps.append((chats, seconds, self._activations() - self._before))

    def beside(self, chats: int, work: ModelWork, limits: MachineLimits) -> dict[str, Any]:
        """The steps of so many chats beside the bound; None for what no step showed."""
        steps = [(seconds, experts) for rows, seconds, experts in self._steps if rows == chats]
        if not steps:
            return dict.fromkeys(("full_step_tokens_per_second", "roofline_tokens_per_second", "roofline_share"))
        took, experts = (median(numbers) for numbers in zip(*steps, strict=True))
        read, computed = work.step_seconds(chats, experts, limits)
        bound = max(read, computed)
        return {
            "full_step_tokens_per_second": chats / took,
            "roofline_tokens_per_second": chats / bound,
            "roofline_share": bound / took,
            "roofline_read_seconds": read,
            "roofline_product_seconds": computed,
        }
