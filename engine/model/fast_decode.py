"""The decoding fast path: one token through a Llama-like MoE model with a few compiled calls per layer.

transformers' own forward spends more time in Python and small operators than in reading the weights of a small
model. The same numbers come from here, up to the order of summation; `unsupported_reason` names what it can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engine.model.experts import Batch, ExpertProvider, ExpertWeights, expert_forward, plain_activation
from engine.model.fast_support import family_of, is_moe, sliding_window, unsupported_reason
from engine.model.joined_layers import AddressedExperts, JoinedLayers, LayerArrays, RoutedRows, SlotLayout
from engine.model.kernels import use_torch_threads
from engine.model.kv_cache import KvCache, KvLayer

if TYPE_CHECKING:  # compiled kernels load only where they can run
    from engine.model.kernels.decode_kernels import DecodeKernels


class FastDecoder:
    """Decodes single tokens against `kv`, which transformers' forward may have filled with the prompt.

    Not thread-safe; `kv` and the model must not be run elsewhere during a step.
    """

    @staticmethod
    def supports(model: Any) -> str | None:
        """None when this model is supported, else the reason in words."""
        return unsupported_reason(model)

    def __init__(self, model: Any, kv: KvCache, provider: ExpertProvider, kernels: DecodeKernels | None = None) -> None:
        reason = unsupported_reason(model)
        if reason is not None:
            raise ValueError(reason)
        from engine.model.kernels.decode_kernels import DecodeKernels
        from engine.model.kernels.storage import kernel_view

        self._kernels = kernels or DecodeKernels()
        self._kv = kv
        self._embedding = model.model.embed_tokens.weight.detach()
        self._rotary = _Rotary(model.model.rotary_emb)
        self._residual = np.empty(model.config.hidden_size, np.float32)
        self._last_x = np.empty((1, model.config.hidden_size), np.float32)
        attention_scratch = _AttentionScratch(model, kv.context_length)
        self._layers: list[tuple[_Attention, _Moe | _DenseMlp]] = []
        moe_layers = 0
        self._rows = _routed_rows(model)
        for number, layer in enumerate(model.model.layers):
            mlp: _Moe | _DenseMlp
            if is_moe(layer):
                mlp = _Moe(model, layer, moe_layers, self._rows, provider, self._kernels)
                moe_layers += 1
            else:
                mlp = _DenseMlp(layer)
            attention = _Attention(model, number, kv.layers[number], attention_scratch, self._kernels)
            self._layers.append((attention, mlp))
        self._attention_scratch = attention_scratch.buffers
        self._addressed = provider if isinstance(provider, AddressedExperts) and kernels is None else None
        self._joined: JoinedLayers | None = None
        self._norm = model.model.norm
        self._norm_weight = fp32_array(model.model.norm.weight)
        self._head = kernel_view(model.lm_head.weight)
        self._head_bias = None if model.lm_head.bias is None else fp32_array(model.lm_head.bias)
        self._logits = np.empty((1, self._head.shape[0]), np.float32)

    def step(self, token_id: int) -> np.ndarray:
        """Logits [vocabulary] float32 after `token_id` at the next position; the buffer is reused by the next call.

        Raises ContextFull when the cache has no room, and whatever the provider raises; the cache is then as before.
        """
        use_torch_threads()
        self._kv.require_room(1)
        position = self._kv.length
        cos, sin = self._rotary.at(position)
        residual = self._residual
        residual[:] = self._embedding[token_id].float().numpy()
        addresses = None if self._addressed is None else self._addressed.addresses()
        if addresses is not None and self._joined is not None:
            self._run_joined(self._joined, addresses, position, cos, sin)
        else:
            for attention, mlp in self._layers:
                attention.add_to(residual, position, cos, sin)
                mlp.add_to(residual)
        if addresses is not None and self._joined is None:
            self._joined = self._join_layers()
        for layer in self._kv.layers:
            layer.length = position + 1
        self._kernels.rms_norm(residual, self._norm_weight, self._norm.variance_epsilon, self._last_x[0])
        self._kernels.matvec(self._head, self._last_x, self._logits)
        if self._head_bias is not None:
            self._logits += self._head_bias
        return self._logits[0]

    def _run_joined(
        self, joined: JoinedLayers, addresses: np.ndarray, position: int, cos: np.ndarray, sin: np.ndarray
    ) -> None:
        """All layers: those in one call that it can compute, then one whose experts have to be acquired or of whose
        routing somebody is told, and so on.
        """
        addressed, residual, rows = self._addressed, self._residual, self._rows
        assert addressed is not None
        first, is_routed, count, pauses = 0, False, len(self._layers), addressed.pauses()
        while first < count:
            stop, misses = joined.run(first, is_routed, pauses, residual, position, cos, sin, addresses)
            if stop > first:
                addressed.computed(first, rows.told[first:stop], rows.ids[first:stop], rows.weights[first:stop])
            first, is_routed = stop, stop < count and not misses
            if is_routed:
                addressed.routed(stop, rows.of_layer[stop])
            elif misses:
                mlp = self._layers[stop][1]
                assert isinstance(mlp, _Moe)
                mlp.add_routed_to(residual)
                first = stop + 1

    def _join_layers(self) -> JoinedLayers | None:
        """Known after a first step: where parameters lie in a slot. None where layers differ."""
        layers = [LayerArrays(attention.weights, *mlp.arrays) for attention, mlp in self._layers if mlp.arrays]
        if len(layers) < len(self._layers) or not JoinedLayers.supports(layers):
            self._addressed = None
            return None
        return JoinedLayers(layers, self._rows, self._attention_scratch)

    @property
    def last_hidden(self) -> np.ndarray:
        """[1, width] float32, normalised, after the last layer of the step before; re-used by the next step."""
        return self._last_x


class _Rotary:
    """Cosines and sines from the model's own module, a block of positions at a time."""

    BLOCK = 64

    def __init__(self, module: Any) -> None:
        self._module = module
        self._first = -1
        self._cos = self._sin = np.empty((0, 0), np.float32)

    def at(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        first = position - position % self.BLOCK
        if first != self._first:
            positions = torch.arange(first, first + self.BLOCK)[None]
            cos, sin = self._module(torch.empty(1, dtype=torch.float32), positions)
            self._cos, self._sin, self._first = cos[0].numpy(), sin[0].numpy(), first
        return self._cos[position - first], self._sin[position - first]


class _AttentionScratch:
    """Buffers that all layers' attention shares, in the order of the kernel's last arguments."""

    def __init__(self, model: Any, context_length: int) -> None:
        from engine.model.kernels.attention import CHUNK

        heads, head_dim = model.config.num_attention_heads, model.model.layers[0].self_attn.head_dim
        chunks = -(-context_length // CHUNK)
        shapes = [
            (model.config.hidden_size,),  # x
            (heads, head_dim),  # query
            (heads, head_dim),  # attended
            (heads, context_length),  # scores
            (heads, chunks),  # largest
            (heads, chunks),  # totals
            (heads, chunks, head_dim),  # outputs
        ]
        self.buffers = tuple(np.zeros(shape, np.float32) for shape in shapes)


class _Attention:
    """One decoder layer's attention block."""

    def __init__(
        self, model: Any, number: int, kv_layer: KvLayer, scratch: _AttentionScratch, kernels: DecodeKernels
    ) -> None:
        from engine.model.kernels.storage import kernel_view

        layer = model.model.layers[number]
        attention, norm = layer.self_attn, layer.input_layernorm
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        kv_heads = linears[1].weight.shape[0] // attention.head_dim
        if not kv_layer.is_initialized:
            kv_layer.allocate(kv_heads, attention.head_dim, attention.head_dim)
        family = family_of(model)
        assert family is not None
        window = sliding_window(model, family, number)
        self._kernel = kernels.attention_block
        self._scratch = scratch.buffers
        self.weights = (
            fp32_array(norm.weight),
            norm.variance_epsilon,
            *(kernel_view(linear.weight) for linear in linears),
            *(fp32_array(linear.bias) for linear in linears),
            *(fp32_array(getattr(getattr(attention, name, None), "weight", None)) for name in ("q_norm", "k_norm")),
            np.float32(attention.scaling),
            kv_layer.context_length if window is None else window,
            kv_layer.keys[0].numpy(),
            kv_layer.values[0].numpy(),
        )

    def add_to(self, residual: np.ndarray, position: int, cos: np.ndarray, sin: np.ndarray) -> None:
        self._kernel(*self.weights, position, cos, sin, residual, *self._scratch)


class _Moe:
    """One decoder layer's norm, router and experts, and the shared expert where there is one."""

    def __init__(
        self,
        model: Any,
        layer: Any,
        ordinal: int,
        rows: RoutedRows,
        provider: ExpertProvider,
        kernels: DecodeKernels,
    ) -> None:
        family = family_of(model)
        assert family is not None
        block = layer.mlp
        norm, router = layer.post_attention_layernorm, block.gate
        self._experts_module, self._provider, self._ordinal = block.experts, provider, ordinal
        self._kernels = kernels
        self._activation = plain_activation(block.experts)
        self._route_weights = (
            fp32_array(norm.weight),
            norm.variance_epsilon,
            fp32_array(router.weight),
            bool(family.always_renormalise or router.norm_topk_prob),
        )
        width, top_k = model.config.hidden_size, router.top_k
        self._x, self._ids, self._weights = rows.x[ordinal][None], rows.ids[ordinal], rows.weights[ordinal]
        self._told = rows.told[ordinal]
        self._probabilities = np.empty(router.weight.shape[0], np.float32)
        self._addresses = np.empty(top_k, np.int64)
        self._rows_of_batch = np.empty(top_k, np.int64)
        self._no_tokens = np.zeros(top_k, np.int64)  # every pair belongs to token 0
        self._outputs = np.empty((top_k, width), np.float32)
        self._layout: SlotLayout | None = None
        self._hidden = np.empty((0, 0), np.float32)
        self._shared = _shared_expert(block, self._x, kernels)

    @property
    def arrays(self) -> tuple[tuple[Any, ...], int, SlotLayout] | None:
        """What LayerArrays holds of it; None with an expert for every token, or before the first step."""
        if self._activation is None or self._shared is not None or self._layout is None:
            return None
        return self._route_weights, self._activation, self._layout

    def add_to(self, residual: np.ndarray) -> None:
        self._kernels.route(residual, *self._route_weights, self._x[0], self._probabilities, self._ids, self._weights)
        self.add_routed_to(residual)

    def add_routed_to(self, residual: np.ndarray) -> None:
        """The experts that the router has just chosen."""
        self._provider.observe(self._ordinal, *self._told)
        ids = self._ids.tolist()
        with self._provider.acquire(self._ordinal, ids) as lease:
            if self._shared is not None:
                self._shared.add_to(residual)  # while experts that were missing are on their way
            while batch := lease.next_batch():
                self._compute(batch, ids)
        self._kernels.add_experts(residual, self._outputs, self._weights)

    def _compute(self, batch: Batch, ids: list[int]) -> None:
        layout = self._layout or self._remember_layout(batch[0][1])
        if layout.stored is None:
            x = torch.from_numpy(self._x)
            for expert, weights in batch:
                row = ids.index(expert)
                output = torch.from_numpy(self._outputs[row : row + 1])
                expert_forward(self._experts_module, weights.tensors, x, output)
            return
        for i, (expert, weights) in enumerate(batch):
            self._addresses[i] = weights.address
            self._rows_of_batch[i] = ids.index(expert)
        self._kernels.expert_mlp(
            self._addresses[: len(batch)],
            layout.gate_up_offset,
            layout.down_offset,
            layout.stored,
            self._activation,
            self._x,
            self._no_tokens,
            self._rows_of_batch,
            self._hidden,
            self._outputs,
        )

    def _remember_layout(self, weights: ExpertWeights) -> SlotLayout:
        self._layout = slot_layout(weights)
        self._hidden = np.empty((len(self._ids), self._layout.intermediate), np.float32)
        return self._layout


def slot_layout(weights: ExpertWeights) -> SlotLayout:
    """Where a layer's parameters lie within a slot: the same for all of its experts."""
    from engine.model.kernels.storage import has_kernel_dtype, kernel_view

    gate_up, down = weights.tensors["gate_up_proj"], weights.tensors["down_proj"]
    readable = has_kernel_dtype(down.dtype) and gate_up.dtype == down.dtype
    stored = np.empty(0, kernel_view(down[:0]).dtype) if readable else None
    offsets = (tensor.data_ptr() - weights.address for tensor in (gate_up, down))
    gate_up_offset, down_offset = offsets
    return SlotLayout(stored, gate_up_offset, down_offset, down.shape[1])


def _routed_rows(model: Any) -> RoutedRows:
    layers = [layer for layer in model.model.layers if is_moe(layer)]
    return RoutedRows(len(layers), model.config.hidden_size, max(layer.mlp.gate.top_k for layer in layers))


def _shared_expert(block: Any, x: np.ndarray, kernels: DecodeKernels) -> _SharedExpert | _SharedExpertModule | None:
    """The block's expert for every token, by the kernels if they can compute it; None where it has none."""
    if not hasattr(block, "shared_expert"):
        return None
    weights = shared_expert_weights(block)
    return _SharedExpertModule(block, x) if weights is None else _SharedExpert(weights, x[0], kernels)


SharedExpertWeights = tuple[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]
"""Gate, up and down as stored, the activation's number, and the gate of the whole expert in fp32 [width]."""


def shared_expert_weights(block: Any) -> SharedExpertWeights | None:
    """Of the block's expert for every token, as the kernels take them; None where they cannot."""
    from engine.model.kernels.activation import activation_number
    from engine.model.kernels.storage import has_kernel_dtype, kernel_view

    expert = block.shared_expert
    linears = (expert.gate_proj, expert.up_proj, expert.down_proj)
    activation = activation_number(expert.act_fn)
    readable = {linear.weight.dtype for linear in linears}
    plain = all(linear.bias is None and linear.weight.is_contiguous() for linear in linears)
    if activation is None or len(readable) > 1 or not plain or not has_kernel_dtype(readable.pop()):
        return None
    gate, up, down = (kernel_view(linear.weight) for linear in linears)
    return gate, up, down, activation, fp32_array(block.shared_expert_gate.weight)[0]


class _SharedExpert:
    """Qwen2's expert for every token, scaled by a gate of its own; reads the same normalised input."""

    def __init__(self, weights: SharedExpertWeights, x: np.ndarray, kernels: DecodeKernels) -> None:
        gate, up, down, activation, scale = weights
        self._kernel = kernels.add_shared_expert
        self._arguments = (gate, up, down, activation, scale, x, np.empty(len(gate), np.float32))

    def add_to(self, residual: np.ndarray) -> None:
        self._kernel(*self._arguments, residual)


class _SharedExpertModule:
    """The same through transformers' own module, for weights or activations the kernels do not know."""

    def __init__(self, block: Any, x: np.ndarray) -> None:
        self._block = block
        self._x = torch.from_numpy(x)

    @torch.no_grad()
    def add_to(self, residual: np.ndarray) -> None:
        gate = torch.sigmoid(self._block.shared_expert_gate(self._x))
        residual += (gate * self._block.shared_expert(self._x))[0].numpy()


class _DenseMlp:
    """A decoder layer without experts, in a family that mixes both kinds."""

    arrays = None

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @torch.no_grad()
    def add_to(self, residual: np.ndarray) -> None:
        x = self._layer.post_attention_layernorm(torch.from_numpy(residual)[None])
        residual += self._layer.mlp(x)[0].numpy()


def fp32_array(weight: torch.Tensor | None) -> np.ndarray:
    """A small weight as a float32 array; of size 0 where there is none."""
    return np.empty(0, np.float32) if weight is None else weight.detach().float().contiguous().numpy()
