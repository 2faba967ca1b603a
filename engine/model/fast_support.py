"""Which models the decoding fast path computes exactly: named families, each module of the class it was written for.

A family is listed here only after its modelling code was read; anything that is not the very class is refused.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.model import kernels
from engine.model.experts import plain_activation
from engine.model.stored_linear import StoredEmbedding, StoredLinear


@dataclass(frozen=True)
class Family:
    """A family of transformers whose decoder layer is Llama's with routed experts.

    `always_renormalise`: its router divides the chosen probabilities by their sum without asking the config.
    `windows`: where its sliding window is said: "config", "layer_types" or "none".
    """

    prefix: str
    always_renormalise: bool = False
    windows: str = "config"


FAMILIES = {
    "transformers.models.mixtral.modeling_mixtral.MixtralForCausalLM": Family("Mixtral", always_renormalise=True),
    "transformers.models.qwen2_moe.modeling_qwen2_moe.Qwen2MoeForCausalLM": Family("Qwen2Moe", windows="layer_types"),
    "transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeForCausalLM": Family("Qwen3Moe"),
    "transformers.models.olmoe.modeling_olmoe.OlmoeForCausalLM": Family("Olmoe", windows="none"),
}
STATIC_ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # frequencies that do not change with the length


def family_of(model: Any) -> Family | None:
    """The family the model belongs to, by its exact class."""
    return FAMILIES.get(f"{type(model).__module__}.{type(model).__qualname__}")


def unsupported_reason(model: Any) -> str | None:
    """None when the fast path computes this model exactly, else why it does not, in one sentence."""
    if reason := kernels.unavailable_reason():
        return reason
    family = family_of(model)
    if family is None:
        return f"No fast path for {type(model).__name__} yet: transformers' own layers decode."
    found = _first_difference(model, family)
    return None if found is None else f"No fast path for this {type(model).__name__}: {found}."


def ends_with_experts(model: Any) -> bool:
    """Whether the last decoder layer's experts are the last thing to compute before norm and head (known families)."""
    return family_of(model) is not None and is_moe(model.model.layers[-1])


def sliding_window(model: Any, family: Family, layer: int) -> int | None:
    """Positions that decoder layer `layer` sees, its own included; None where it sees all."""
    config = model.config
    if family.windows == "none":
        return None
    if family.windows == "layer_types" and config.layer_types[layer] != "sliding_attention":
        return None
    return config.sliding_window


def _first_difference(model: Any, family: Family) -> str | None:
    decoder, config = model.model, model.config
    if config.rope_parameters["rope_type"] not in STATIC_ROPE_TYPES:
        return f"rotary embedding '{config.rope_parameters['rope_type']}' changes with the length"
    if config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        return "only part of each head is rotated"
    if getattr(config, "clip_qkv", None) is not None:
        return "queries, keys and values are clipped"
    if type(decoder.embed_tokens) not in (nn.Embedding, StoredEmbedding):
        return f"token embedding is a {type(decoder.embed_tokens).__name__}"
    checks = [
        (decoder, "Model"),
        (decoder.norm, "RMSNorm"),
        (decoder.rotary_emb, "RotaryEmbedding"),
    ]
    for layer in decoder.layers:
        checks += [(layer, "DecoderLayer"), (layer.self_attn, "Attention")]
        checks += [(layer.input_layernorm, "RMSNorm"), (layer.post_attention_layernorm, "RMSNorm")]
        if is_moe(layer):
            checks += [(layer.mlp, "SparseMoeBlock"), (layer.mlp.gate, "TopKRouter"), (layer.mlp.experts, "Experts")]
        else:
            checks.append((layer.mlp, "MLP"))
    names = sys.modules[type(model).__module__]
    for module, role in checks:
        if type(module) is not getattr(names, family.prefix + role, None):
            return f"{role} is a {type(module).__name__}"
    return _unreadable_weight(model)


def is_moe(layer: Any) -> bool:
    """Whether a decoder layer has routed experts (some families mix in dense layers)."""
    return hasattr(layer.mlp, "experts")


def _unreadable_weight(model: Any) -> str | None:
    from engine.model.kernels.storage import has_kernel_dtype

    linears = {"lm_head": model.lm_head}
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        linears |= {f"layer {number}'s {name}": getattr(attention, name) for name in names}
        if len({getattr(attention, name).weight.dtype for name in names}) > 1:
            return f"layer {number}'s projections have different dtypes"
        if is_moe(layer) and plain_activation(layer.mlp.experts) is None:
            return f"layer {number}'s experts are not of the plain gated form"
        if is_moe(layer) and layer.mlp.gate.weight.dtype != torch.float32:
            return f"layer {number}'s router is not in fp32"
    for name, linear in linears.items():
        if type(linear) not in (nn.Linear, StoredLinear):
            return f"{name} is a {type(linear).__name__}"
        weight = linear.weight
        if not (has_kernel_dtype(weight.dtype) and weight.device.type == "cpu" and weight.is_contiguous()):
            return f"{name} is stored as {weight.dtype} on {weight.device}"
    return None
