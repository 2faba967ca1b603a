"""The feed-forward part of a decoder layer for one token of each of several chats: experts are read once for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine.model.experts import Batch, ExpertProvider, ExpertWeights, Pairs, expert_forward, plain_activation
from engine.model.fast_decode import SharedExpertWeights, fp32_array, shared_expert_weights, slot_layout
from engine.model.fast_support import family_of
from engine.model.joined_layers import SlotLayout
from engine.model.joint_layers import ExpertsArrays
from engine.model.joint_product import SideBySide, multiply_experts, unsuitable
from engine.model.joint_scratch import JointScratch
from engine.model.kernels.joint_experts import add_combined, add_scaled, gate_rows, route_rows
from engine.model.kernels.storage import kernel_view


class MoeRows:
    """One decoder layer's norm, router and experts, and the shared expert where there is one."""

    def __init__(self, model: Any, layer: Any, ordinal: int, provider: ExpertProvider) -> None:
        family, block = family_of(model), layer.mlp
        assert family is not None
        norm, router = layer.post_attention_layernorm, block.gate
        self._experts_module, self._provider, self._ordinal = block.experts, provider, ordinal
        self._activation = plain_activation(block.experts)
        self._num_experts, self._top_k = router.weight.shape[0], router.top_k
        self._route_weights = (
            fp32_array(norm.weight),
            norm.variance_epsilon,
            fp32_array(router.weight),
            bool(family.always_renormalise or router.norm_topk_prob),
        )
        self._shared = _shared_rows(block)
        self._layout: SlotLayout | None = None

    @property
    def arrays(self) -> ExpertsArrays | None:
        """What `JointLayers` needs to know of it; None with an expert for every token, or before the first pass."""
        if self._activation is None or self._shared is not None or self._layout is None:
            return None
        return ExpertsArrays(*self._route_weights, self._top_k, self._activation, self._layout)

    def add_to(self, scratch: JointScratch) -> None:
        ids = scratch.named("ids", scratch.chats, self._top_k, dtype=np.int64)
        weights = scratch.named("weights", scratch.chats, self._top_k)
        probabilities = scratch.named("probabilities", scratch.chats, self._num_experts)
        route_rows(scratch.residual, *self._route_weights, scratch.x, probabilities, ids, weights)
        self.add_routed_to(scratch, scratch.x, ids, weights)

    def add_routed_to(self, scratch: JointScratch, x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> None:
        """The experts that the router has just chosen for x [chats, width]; ids and weights [chats, top_k]."""
        index = torch.from_numpy(ids)
        self._provider.observe(self._ordinal, torch.from_numpy(x), index, torch.from_numpy(weights))
        pairs = Pairs(index, self._num_experts)
        outputs = scratch.named("outputs", len(pairs.tokens), x.shape[1])
        with self._provider.acquire(self._ordinal, pairs.experts.tolist()) as lease:
            if self._shared is not None:
                self._shared.add_to(scratch)  # while experts that were missing are on their way
            while batch := lease.next_batch():
                self._compute(batch, pairs, scratch, x, outputs)
        add_combined(scratch.residual, outputs, pairs.row_of_pair, weights)

    def _compute(self, batch: Batch, pairs: Pairs, scratch: JointScratch, x: np.ndarray, outputs: np.ndarray) -> None:
        layout = self._layout = self._layout or _readable_layout(batch[0][1])
        rows = [pairs.rows_of(expert) for expert, _ in batch]
        if layout.stored is None:
            self._compute_by_torch(batch, rows, pairs, x, outputs)
            return
        slots = np.array([expert.address for _, expert in batch])
        both = scratch.named("both", len(outputs), 2 * layout.intermediate)
        hidden = scratch.named("hidden", len(outputs), layout.intermediate)
        every_pair = np.arange(len(outputs))
        chosen = np.concatenate([every_pair[group] for group in rows])
        gate_up, down = slots + layout.gate_up_offset, slots + layout.down_offset
        multiply_experts(gate_up, both.shape[1], rows, layout.stored, x, pairs.tokens, both)
        gate_rows(self._activation, both, chosen, hidden)
        multiply_experts(down, outputs.shape[1], rows, layout.stored, hidden, every_pair, outputs)

    def _compute_by_torch(
        self, batch: Batch, rows: Sequence[slice], pairs: Pairs, x: np.ndarray, outputs: np.ndarray
    ) -> None:
        inputs, out = torch.from_numpy(x), torch.from_numpy(outputs)
        for (_, expert), chosen in zip(batch, rows, strict=True):
            tokens = torch.from_numpy(pairs.tokens[chosen])
            expert_forward(self._experts_module, expert.tensors, inputs[tokens], out=out[chosen])


def _readable_layout(weights: ExpertWeights) -> SlotLayout:
    """`slot_layout`, without what the products of rows cannot read."""
    layout = slot_layout(weights)
    matrices = () if layout.stored is None else (weights.tensors[name] for name in ("gate_up_proj", "down_proj"))
    if any(unsuitable(kernel_view(matrix)) for matrix in matrices):
        return replace(layout, stored=None)
    return layout


def _shared_rows(block: Any) -> _SharedRows | _SharedModule | None:
    """The block's expert for every token, by the kernels if they can compute it; None where it has none."""
    if not hasattr(block, "shared_expert"):
        return None
    weights = shared_expert_weights(block)
    if weights is None or any(map(unsuitable, weights[:3])):
        return _SharedModule(block)
    return _SharedRows(weights)


class _SharedRows:
    """Qwen2's expert for every token, scaled by a gate of its own; reads the same normalised inputs."""

    def __init__(self, weights: SharedExpertWeights) -> None:
        gate, up, down, self._activation, self._scale = weights
        self._gate_up, self._down, self._intermediate = SideBySide(gate, up), SideBySide(down), len(gate)

    def add_to(self, scratch: JointScratch) -> None:
        both = scratch.named("shared both", scratch.chats, 2 * self._intermediate)
        hidden = scratch.named("shared hidden", scratch.chats, self._intermediate)
        self._gate_up.multiply(scratch.x, scratch.rows, both)
        gate_rows(self._activation, both, scratch.rows, hidden)
        self._down.multiply(hidden, scratch.rows, scratch.added)
        add_scaled(scratch.residual, scratch.added, self._scale, scratch.x)


class _SharedModule:
    """The same through transformers' own module, for weights or activations the kernels do not know."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def add_to(self, scratch: JointScratch) -> None:
        x = torch.from_numpy(scratch.x)
        gate = torch.sigmoid(self._block.shared_expert_gate(x))
        scratch.residual += (gate * self._block.shared_expert(x)).numpy()


class DenseRows:
    """A decoder layer without experts, in a family that mixes both kinds."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def add_to(self, scratch: JointScratch) -> None:
        x = self._layer.post_attention_layernorm(torch.from_numpy(scratch.residual))
        scratch.residual += self._layer.mlp(x).numpy()
