"""The joint fast path: a token of each of several chats through a Llama-like MoE model, weights read once for all.

The same numbers as `FastDecoder`'s, up to the order of summation, in a few compiled calls per layer. A row's numbers do
not depend on the rows beside it. Ask `kernels.available()` before importing this.
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
from engine.model.joint_moe import DenseRows, MoeRows
from engine.model.joint_product import SideBySide, unsuitable
from engine.model.joint_scratch import JointScratch
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
            positions = _Positions(chats, self._rotary, self._kv_shape)
            for number, (attention, mlp) in enumerate(self._layers):
                attention.add_to(scratch, positions, number)
                mlp.add_to(scratch)
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

    def _scratch_for(self, chats: int) -> JointScratch:
        if self._scratch is None or self._scratch.chats != chats:
            self._scratch = JointScratch(self._model.config, self._kv_shape, chats)
        return self._scratch

    def _logits(self, scratch: JointScratch) -> torch.Tensor:
        norm_rows(scratch.residual, self._norm_weight, self._norm.variance_epsilon, scratch.x)
        logits = torch.empty(scratch.chats, self._vocabulary)
        self._head.multiply(scratch.x, scratch.rows, logits.numpy())
        return logits if self._head_bias is None else logits + self._head_bias.float()


class _Positions:
    """Where each chat's next token goes: its number, its rotary angles, and the addresses of its keys and values."""

    def __init__(self, chats: Sequence[KvCache], rotary: Any, kv_shape: tuple[int, int]) -> None:
        kv_heads, head_dim = kv_shape
        for layer in (layer for chat in chats for layer in chat.layers if not layer.is_initialized):
            layer.allocate(kv_heads, head_dim, head_dim)
        self.numbers = np.array([chat.length for chat in chats])
        self.contexts = np.array([chat.context_length for chat in chats])
        cos, sin = rotary(torch.empty(1, dtype=torch.float32), torch.from_numpy(self.numbers)[None])
        self.cos, self.sin = cos[0].contiguous().numpy(), sin[0].contiguous().numpy()
        layers = list(zip(*(chat.layers for chat in chats), strict=True))
        self.keys = np.array([[layer.keys.data_ptr() for layer in of_chats] for of_chats in layers])
        self.values = np.array([[layer.values.data_ptr() for layer in of_chats] for of_chats in layers])


class _Attention:
    """One decoder layer's attention block."""

    def __init__(self, model: Any, number: int) -> None:
        layer, family = model.model.layers[number], family_of(model)
        assert family is not None
        attention = layer.self_attn
        inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
        window = sliding_window(model, family, number)
        self._norm = fp32_array(layer.input_layernorm.weight), layer.input_layernorm.variance_epsilon
        self._inputs = SideBySide(*(kernel_view(linear.weight) for linear in inputs))
        self._output = SideBySide(kernel_view(attention.o_proj.weight))
        self._output_bias = fp32_array(attention.o_proj.bias)
        self._settings = (
            *(fp32_array(linear.bias) for linear in inputs),
            *(fp32_array(getattr(getattr(attention, name, None), "weight", None)) for name in ("q_norm", "k_norm")),
            layer.input_layernorm.variance_epsilon,
            np.float32(attention.scaling),
            np.iinfo(np.int64).max if window is None else window,
        )

    def add_to(self, scratch: JointScratch, positions: _Positions, number: int) -> None:
        """Of layer `number`."""
        norm_rows(scratch.residual, *self._norm, scratch.x)
        self._inputs.multiply(scratch.x, scratch.rows, scratch.projected)
        joint_attention(
            *self._settings,
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
        self._output.multiply(scratch.attended.reshape(scratch.chats, -1), scratch.rows, scratch.added)
        add_rows(scratch.residual, scratch.added, self._output_bias)


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
