"""How fast this processor computes one expert for one token, with the kernel that the engine uses."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from engine.hardware.speed import Step, working_set_bytes
from engine.model import kernels, upcast

_MOST_EXPERTS = 256


@dataclass(frozen=True)
class ExpertShape:
    """A gated expert: gate and up [intermediate, hidden] each, down [hidden, intermediate], all in `dtype`."""

    hidden: int
    intermediate: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def nbytes(self) -> int:
        return 3 * self.hidden * self.intermediate * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        name = str(self.dtype).removeprefix("torch.")
        return {"hidden": self.hidden, "intermediate": self.intermediate, "dtype": name}


TYPICAL_EXPERT = ExpertShape(2048, 768)  # Qwen3-30B-A3B's, for when there is no model yet


def expert_shape(parameters: Any, hidden: int) -> ExpertShape:
    """The shape behind one expert's parameters (`ExpertIndex.params`) in a model of this hidden width.

    A family with another form is taken as a gated expert of the same size. Weights stored in whole numbers or in
    fewer than 16 bits are taken as bf16, which is no slower to read.
    """
    weights = [parameter for parameter in parameters if len(parameter.shape) == 2]
    elements = sum(parameter.shape[0] * parameter.shape[1] for parameter in weights)
    stored = weights[0].dtype if weights else torch.bfloat16
    computable = stored in (torch.bfloat16, torch.float16, torch.float32)
    return ExpertShape(hidden, max(1, elements // (3 * hidden)), stored if computable else torch.bfloat16)


def computed_by(shape: ExpertShape) -> str:
    """What computes such an expert here: "compiled kernel" or "PyTorch"."""
    if not kernels.available():
        return "PyTorch"
    from engine.model.kernels.storage import has_kernel_dtype

    return "compiled kernel" if has_kernel_dtype(shape.dtype) else "PyTorch"


def expert_steps(shape: ExpertShape) -> Step:
    """Steps that compute one expert for one token, each time another one; they return its bytes.

    Of an expert larger than the memory to go through, as many inner rows as fit.
    """
    room = working_set_bytes()
    if shape.nbytes > room:
        shape = replace(shape, intermediate=max(1, shape.intermediate * room // shape.nbytes))
    count = min(_MOST_EXPERTS, max(1, room // shape.nbytes))
    elements = 3 * shape.hidden * shape.intermediate
    weights = torch.full((count, elements), 0.01, dtype=shape.dtype)
    x = torch.ones(1, shape.hidden)
    return (
        _kernel_steps(shape, weights, x) if computed_by(shape) == "compiled kernel" else _torch_steps(shape, weights, x)
    )


def _kernel_steps(shape: ExpertShape, weights: torch.Tensor, x: torch.Tensor) -> Step:
    from engine.model.kernels.activation import SILU
    from engine.model.kernels.expert_mlp import expert_mlp
    from engine.model.kernels.storage import kernel_view

    down_offset = 2 * shape.hidden * shape.intermediate * shape.dtype.itemsize
    stored, rows = kernel_view(weights[0]), np.zeros(1, np.int64)
    hidden, out = np.empty((1, shape.intermediate), np.float32), np.empty((1, shape.hidden), np.float32)
    addresses = itertools.cycle([np.array([expert.data_ptr()], np.int64) for expert in weights])

    def step() -> int:
        kernels.use_torch_threads()
        expert_mlp(next(addresses), 0, down_offset, stored, SILU, x.numpy(), rows, rows, hidden, out)
        return shape.nbytes

    return step


def _torch_steps(shape: ExpertShape, weights: torch.Tensor, x: torch.Tensor) -> Step:
    split = 2 * shape.hidden * shape.intermediate
    experts = itertools.cycle(weights)

    def step() -> int:
        expert = next(experts)
        gate, up = upcast.linear(x, expert[:split].view(-1, shape.hidden)).chunk(2, dim=1)
        upcast.linear(torch.nn.functional.silu(gate) * up, expert[split:].view(shape.hidden, -1))
        return shape.nbytes

    return step
