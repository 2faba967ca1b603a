"""Checkpoints whose experts are stored as mxfp4, such as gpt-oss': they stay so in slots and are raised at use.

A matrix [inputs, outputs] of the model is stored as `x_blocks` [outputs, inputs / 32, 16 bytes], two numbers a byte,
and `x_scales` [outputs, inputs / 32], exponents of two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.errors import UnsupportedModel

METHOD = "mxfp4"
BLOCKS = "_blocks"  # ending of the checkpoint's name for a parameter's numbers
SCALES = "_scales"
BLOCK = 32  # inputs that share a scale


def expect_packed_experts(experts: nn.Module, name: str) -> None:
    """Gives the experts module `name`, on the meta device, parameters of the stored shapes in place of its matrices.

    Raises UnsupportedModel for modules that no such checkpoint is known of.
    """
    matrices = {key: p for key, p in experts.named_parameters(recurse=False) if p.ndim == 3}
    if not experts.is_transposed or any(matrix.shape[1] % BLOCK for matrix in matrices.values()):
        raise UnsupportedModel(
            f"The experts {name} are stored as {METHOD} in a form that this version does not know.",
            "Use a float32, float16 or bfloat16 version of the model.",
        )
    for key, matrix in matrices.items():
        count, inputs, outputs = matrix.shape
        _set(experts, key, (count, outputs, inputs // BLOCK, BLOCK // 2))
        _set(experts, key + SCALES, (count, outputs, inputs // BLOCK))


def parameter_name(key: str) -> str:
    """The parameter that tensor `key` of such a checkpoint fills."""
    return key.removesuffix(BLOCKS)


def _set(module: Any, name: str, shape: tuple[int, ...]) -> None:
    stored = torch.empty(shape, dtype=torch.uint8, device="meta")
    module.register_parameter(name, nn.Parameter(stored, requires_grad=False))
