"""The experts of one MoE layer computed on a card, in the model's own dtype, with torch's operators.

The router's choice is read back once: which experts to ask for is decided by the cache, on the processor. All other
work is only enqueued.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from engine.model import packed_on_card
from engine.model.experts import ExpertsPlan, Pairs, expert_on_host, only_last_row
from engine.model.packed_product import PackedMatrix


class ReadWhenAsked:
    """A tensor on the card for listeners that may want its numbers: read back as fp32 only by those that do."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __len__(self) -> int:
        return len(self._tensor)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self._tensor.float().cpu().numpy()
        return array if dtype is None else array.astype(dtype)


def compute_on_card(
    module: nn.Module,
    plan: ExpertsPlan,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """What `compute_experts` promises, for tensors on a card: products in the dtype of `hidden_states`, the weighted
    sum over k in fp32 and in the order of k, whatever the order of arrival.
    """
    routing = torch.stack((top_k_index.double(), top_k_weights.double())).cpu()  # exact for both, and one transfer
    index, weights = routing[0].long(), routing[1].float()
    plan.provider.observe(plan.layer, cast(torch.Tensor, ReadWhenAsked(hidden_states)), index, weights)
    if only_last_row(plan, len(hidden_states)):
        out = torch.zeros_like(hidden_states)
        out[-1:] = _compute(module, plan, hidden_states[-1:], index[-1:], top_k_weights[-1:])
        return out
    return _compute(module, plan, hidden_states, index, top_k_weights)


def _compute(
    module: nn.Module, plan: ExpertsPlan, x: torch.Tensor, index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """`index` on the processor, everything else on the card."""
    pairs = Pairs(index, plan.num_experts)
    tokens, top_k = index.shape
    x_on_host = x.float().cpu() if plan.computes_on_host and tokens == 1 else None  # before the card has more to do
    outputs = x.new_zeros(tokens * top_k, x.shape[1])
    places = torch.from_numpy(pairs.order).to(x.device) if tokens > 1 else None
    with plan.provider.acquire(plan.layer, pairs.experts.tolist()) as lease:
        while batch := lease.next_batch():
            for expert, weights in batch:
                rows = pairs.rows_of(expert)
                if weights.on_host:
                    assert x_on_host is not None
                    computed = expert_on_host(module, plan, weights, x_on_host)
                    outputs[int(pairs.order[rows.start])] = computed[0].to(x)
                elif places is None:
                    outputs[int(pairs.order[rows.start])] = expert_forward(module, weights.tensors, x)[0]
                else:
                    chosen = places[rows]
                    outputs[chosen] = expert_forward(module, weights.tensors, x[chosen // top_k])
    summed = torch.bmm(top_k_weights.float()[:, None], outputs.view(tokens, top_k, -1).float())
    return summed[:, 0].to(x.dtype)


def expert_forward(module: Any, tensors: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """One expert of any family on the seam: x [rows, width] -> [rows, width], in the dtype of x."""
    gated = getattr(module, "has_gate", True)
    inner = _multiply(module, tensors, "gate_up_proj" if gated else "up_proj", x)
    inner = module._apply_gate(inner) if gated else module.act_fn(inner)
    out = _multiply(module, tensors, "down_proj", inner)
    return module.post_expert_norm(out) if getattr(module, "has_post_expert_norm", False) else out


def _multiply(module: Any, tensors: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    bias = tensors.get(f"{name}_bias")
    bias = None if bias is None else bias.to(x.dtype)
    if (packed := PackedMatrix.of(tensors, name)) is not None:
        return packed_on_card.linear(x, packed, bias)
    weight = tensors[name].to(x.dtype)
    return F.linear(x, weight.t() if getattr(module, "is_transposed", False) else weight, bias)
