"""The joint fast path: a token of each of several chats through a Llama-like MoE model, weights read once for all.

The same numbers as `FastDecoder`'s, up to the order of summation, in a few compiled calls per layer, or in one for as
many layers as can be computed without asking for their experts. A row's numbers do not depend on the rows beside it.
Ask `kernels.available()` before importing this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import get_num_threads

from engine.model.experts import ExpertProvider
from engine.model.fast_decode import fp32_array
from engine.model.fast_support import family_of, is_moe, sliding_window, unsupported_reason
from engine.model.joined_layers import AddressedExperts
from engine.model.joint_layers import AttentionArrays, JointLayerArrays, JointLayers
from engine.model.joint_moe import DenseRows, MoeRows
from engine.model.joint_product import SideBySide, unsuitable
from engine.model.joint_scratch import JointPositions, JointScratch
from engine.model.kernels import use_torch_threads
from engine.model.kernels.joint_attention import add_rows, joint_attention, norm_rows
from engine.model.kernels.storage import kernel_view
from engine.model.kv_cache import KvCache


class FastJoint:
    """Reads a token of each chat. Not thread-safe; neither the chats nor the model may be run elsewhere meanwhile."""

    @staticmethod
    def supports(model: Any) -> str | None:
        """None when this model is supported, else the reason in words."""
        return unsupported_reason(model) or _unsuitable_matrix(model)

    def __init__(self, model: Any, provider: ExpertProvider) -> None:
        reason = self.supports(model)
        if reason is not None:
            raise ValueError(reason)
        self._embedding = model.model.embed_tokens
        self._rotary = model.model.rotary_emb
        self._addressed = provider if isinstance(provider, AddressedExperts) else None
        self._joined: JointLayers | None = None  # from when the layout of slots is known
        self._layers: list[tuple[_Attention, MoeRows | DenseRows]] = []
        self._kv_shape = _kv_shape(model)
        moe_layers = 0
        for number, layer in enumerate(model.model.layers):
            mlp: MoeRows | DenseRows = DenseRows(layer)
            if is_moe(layer):
                mlp = MoeRows(model, layer, moe_layers, provider)
                moe_layers += 1
            self._layers.append((_Attention(model, number), mlp))
        self._norm, self._norm_weight = model.model.norm, fp32_array(model.model.norm.weight)
        self._vocabulary = len(model.lm_head.weight)
        self._head = SideBySide(kernel_view(model.lm_head.weight))
        self._head_bias = model.lm_head.bias
        self._scratch: JointScratch | None = None
        self._model = model

    def __call__(self, chats: Sequence[KvCache], tokens: Sequence[int]) -> torch.Tensor:
        """fp32 logits [chats, vocab] after `tokens`, one for each chat, whose caches grow by one position.

        Raises ContextFull, and whatever the provider raises; the caches are then as before.
        """
        for chat in chats:
            chat.require_room(1)
        use_torch_threads()
        with torch.no_grad():
            scratch = self._scratch_for(len(chats))
            scratch.residual[:] = self._embedding(torch.tensor(tokens)).float().numpy()
            positions = JointPositions(chats, self._rotary, self._kv_shape)
            addresses = None if self._addressed is None else self._addressed.addresses()
            if addresses is not None and self._joined is not None:
                self._run_joined(self._joined, scratch, positions, addresses)
            else:
                for number, (attention, mlp) in enumerate(self._layers):
                    attention.add_to(scratch, positions, number)
                    mlp.add_to(scratch)
            if addresses is not None and self._joined is None:
                self._joined = self._join_layers()
            for chat, position in zip(chats, positions.numbers.tolist(), strict=True):
                for layer in chat.layers:
                    layer.length = position + 1
            return self._logits(scratch)

    @property
    def last_hidden(self) -> np.ndarray:
        """fp32 [chats, width] of the last call: the residual stream after the last layer, normalised. The array is
        overwritten by the next call.
        """
        assert self._scratch is not None, "nothing was read yet"
        return self._scratch.x

    def _run_joined(
        self, joined: JointLayers, scratch: JointScratch, positions: JointPositions, addresses: np.ndarray
    ) -> None:
        """All layers: those in one call that it can compute, then one whose experts have to be acquired, and so on."""
        assert self._addressed is not None
        routed, first, count = joined.routed(scratch.chats), 0, len(self._layers)
        while first < count:
            stop = joined.run(first, scratch, positions, addresses)
            routed.tell(self._addressed, first, stop)
            if stop < count:
                mlp = self._layers[stop][1]
                assert isinstance(mlp, MoeRows)
                mlp.add_routed_to(scratch, routed.x[stop], routed.ids[stop], routed.weights[stop])
            first = stop + 1

    def _join_layers(self) -> JointLayers | None:
        """Known after a first pass: where parameters lie in a slot. None where layers differ."""
        layers = [
            JointLayerArrays(attention.arrays, mlp.arrays)
            for attention, mlp in self._layers
            if isinstance(mlp, MoeRows) and mlp.arrays is not None
        ]
        if len(layers) < len(self._layers) or not JointLayers.supports(layers):
            self._addressed = None
            return None
        return JointLayers(layers)

    def _scratch_for(self, chats: int) -> JointScratch:
        if self._scratch is None or self._scratch.chats != chats:
            self._scratch = JointScratch(self._model.config, self._kv_shape, chats)
        return self._scratch

    def _logits(self, scratch: JointScratch) -> torch.Tensor:
        norm_rows(scratch.residual, self._norm_weight, self._norm.variance_epsilon, scratch.x)
        logits = torch.empty(scratch.chats, self._vocabulary)
        self._head.multiply(scratch.x, scratch.rows, logits.numpy())
        return logits if self._head_bias is None else logits + self._head_bias.float()


class _Attention:
    """One decoder layer's attention block."""

    def __init__(self, model: Any, number: int) -> None:
        layer, family = model.model.layers[number], family_of(model)
        assert family is not None
        attention = layer.self_attn
        inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
        window = sliding_window(model, family, number)
        self.arrays = AttentionArrays(
            fp32_array(layer.input_layernorm.weight),
            layer.input_layernorm.variance_epsilon,
            SideBySide(*(kernel_view(linear.weight) for linear in inputs)),
            SideBySide(kernel_view(attention.o_proj.weight)),
            tuple(fp32_array(linear.bias) for linear in (*inputs, attention.o_proj)),
            tuple(fp32_array(getattr(getattr(attention, name, None), "weight", None)) for name in ("q_norm", "k_norm")),
            attention.scaling,
            np.iinfo(np.int64).max if window is None else window,
        )

    def add_to(self, scratch: JointScratch, positions: JointPositions, number: int) -> None:
        """Of layer `number`."""
        own = self.arrays
        norm_rows(scratch.residual, own.norm, own.epsilon, scratch.x)
        own.inputs.multiply(scratch.x, scratch.rows, scratch.projected)
        joint_attention(
            *own.biases[:3],
            *own.head_norms,
            own.epsilon,
            np.float32(own.scale),
            own.window,
            positions.keys[number],
            positions.values[number],
            positions.contexts,
            positions.numbers,
            positions.cos,
            positions.sin,
            scratch.projected,
            scratch.attended,
            get_num_threads(),
            np.zeros(1, np.int64),
        )
        own.output.multiply(scratch.attended.reshape(scratch.chats, -1), scratch.rows, scratch.added)
        add_rows(scratch.residual, scratch.added, own.biases[3])


def _kv_shape(model: Any) -> tuple[int, int]:
    """Heads that keys and values have, and the numbers of each."""
    attention = model.model.layers[0].self_attn
    return attention.k_proj.weight.shape[0] // attention.head_dim, attention.head_dim


def _unsuitable_matrix(model: Any) -> str | None:
    """Why the kernels for a few rows cannot read this model's dense weights, though those for one row can."""
    attentions = [layer.self_attn for layer in model.model.layers]
    linears = [getattr(block, name) for block in attentions for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    reasons = (unsuitable(kernel_view(linear.weight)) for linear in (model.lm_head, *linears))
    reason = next((reason for reason in reasons if reason is not None), None)
    return None if reason is None else f"No joint fast path for this {type(model).__name__}: {reason}."
