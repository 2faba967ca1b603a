"""Activation functions of gated experts, by a small number the kernels switch on."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import math

import numpy as np
import torch
from transformers.activations import GELUActivation, GELUTanh, SiLUActivation

from engine.model.kernels.declare import inlined
from engine.model.kernels.exponential import exp

SILU, GELU, GELU_TANH, RELU = range(4)

_NUMBER_OF_CLASS = {
    torch.nn.SiLU: SILU,
    SiLUActivation: SILU,
    GELUActivation: GELU,
    GELUTanh: GELU_TANH,
    torch.nn.ReLU: RELU,
}


def activation_number(module: torch.nn.Module) -> int | None:
    """The kernels' number of this activation; None where they do not know it."""
    return _NUMBER_OF_CLASS.get(type(module))


@inlined
def activate(number, x):
    """The activation of one float32."""
    if number == SILU:
        return x / (np.float32(1) + exp(-x))
    if number == GELU:
        return np.float32(0.5) * x * (np.float32(1) + math.erf(x * np.float32(0.7071067811865476)))
    if number == GELU_TANH:
        inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
        return np.float32(0.5) * x * (np.float32(1) + math.tanh(inner))
    return max(x, np.float32(0)) if x == x else x
