"""How close a joint step comes to what the machine can do at most: the weights read once, the products at full speed.

The bound of a step is the larger of two times: reading the experts that were touched and the dense weights once at the
speed of memory, and the matrix products of all rows at the speed of a large fp32 product. Both speeds are measured in
the same run, between the steps. Keys and values, norms, routing and sampling are not in the bound; they cost throughput
all the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from engine.checkpoint.dense_model import open_checkpoint
from engine.checkpoint.expert_index import ExpertIndex
from engine.engine import Engine
from engine.generation.joint_choice import Always
from engine.hardware.available_memory import available_ram_bytes
from engine.model.stored_linear import StoredEmbedding

_TRIES = 8
_READ_BYTES = 1 << 30  # like a step, more than caches hold: a server's are of hundreds of megabytes
_RAM_SHARE = 8  # ... but no more than this part of the free RAM
_PRODUCT_WIDTH = 1536


@dataclass(frozen=True)
class MachineLimits:
    """What this machine can do at most, with all its threads."""

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


def measure_limits() -> list[MachineLimits]:
    """Of a few tries, each about as long as a step."""
    numbers = torch.ones(min(_READ_BYTES, available_ram_bytes() // _RAM_SHARE) // 4)
    matrix = torch.ones(_PRODUCT_WIDTH, _PRODUCT_WIDTH)
    return [
        MachineLimits(
            numbers.nbytes / _seconds(lambda: numbers.sum()),
            2 * _PRODUCT_WIDTH**3 / _seconds(lambda: matrix @ matrix),
        )
        for _ in range(_TRIES)
    ]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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
        self.jointly = joint
        self._activations, self._before = activations, 0
        self._steps: list[tuple[int, float, int]] = []

    def joint(self, chats: int) -> bool:
        self._before = self._activations()
        return super().joint(chats)

    def took(self, chats: int, joint: bool, seconds: float) -> None:
        self._steps.append((chats, seconds, self._activations() - self._before))

    def median_of(self, chats: int) -> tuple[float, float] | None:
        """Seconds and experts of the steps that read so many chats."""
        steps = [(seconds, experts) for rows, seconds, experts in self._steps if rows == chats]
        if not steps:
            return None
        return median(seconds for seconds, _ in steps), median(experts for _, experts in steps)


class Roofline:
    """A loaded engine's steps beside the bound."""

    def __init__(self, engine: Engine, path: Path) -> None:
        """Raises what opening the checkpoint at `path` raises."""
        self._engine = engine
        index = open_checkpoint(path).index
        self._resident = engine.plan.slots >= sum(index.experts_per_layer)
        self._work = model_work(engine._model, index)
        self._limits: list[MachineLimits] = []

    def measure_machine(self) -> None:
        """What it can do now. Ask between the steps: beside other programs it is not the same from one to the next."""
        self._limits += measure_limits()

    def record(self, joint: bool) -> RecordedSteps:
        """A choice that reads chats in one pass or one after another, and remembers what it took."""
        return RecordedSteps(joint, lambda: self._engine.stats().activations)

    def beside(self, steps: RecordedSteps, chats: int) -> dict[str, float]:
        """Passes of so many chats, their median, beside the bound of one: by the median of what the machine could do,
        and by the best. {} where there were none or experts had to move. Measure the machine before.
        """
        found = steps.median_of(chats)
        if found is None or not steps.jointly or not self._resident:
            return {}
        took, experts = found
        typical, best = self._limits_by(median), self._limits_by(max)
        read, computed = self._work.step_seconds(chats, experts, typical)
        bound = max(read, computed)
        return {
            "full_step_tokens_per_second": chats / took,
            "roofline_tokens_per_second": chats / bound,
            "roofline_share": bound / took,
            "roofline_share_at_best": max(self._work.step_seconds(chats, experts, best)) / took,
            "roofline_read_seconds": read,
            "roofline_product_seconds": computed,
            **asdict(typical),
        }

    def _limits_by(self, choose: Callable[[list[float]], float]) -> MachineLimits:
        return MachineLimits(
            choose([limits.memory_bytes_per_second for limits in self._limits]),
            choose([limits.flops_per_second for limits in self._limits]),
        )
