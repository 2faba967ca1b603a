"""The kernels one decoding step is made of, as one value, so that a measurement can wrap each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.model.kernels.attention import attention_block, rms_norm
from engine.model.kernels.expert_mlp import add_shared_expert, expert_mlp
from engine.model.kernels.matvec import matvec
from engine.model.kernels.routing import add_experts, route


@dataclass(frozen=True)
class DecodeKernels:
    """In the order in which a step uses them; `expert_mlp` may be called several times per layer."""

    attention_block: Callable = attention_block
    route: Callable = route
    add_shared_expert: Callable = add_shared_expert
    expert_mlp: Callable = expert_mlp
    add_experts: Callable = add_experts
    rms_norm: Callable = rms_norm
    matvec: Callable = matvec
