"""Five models as their makers publish them: config.json's values, and the tensors of their files.

Configs: from the repositories named, as quoted in public sources (Mixtral's and Qwen3's config.json in full, OLMoE's in
NVIDIA's Megatron-Bridge tests, gpt-oss's in EleutherAI's circuit-tracer tests, DeepSeek's as transformers prints it).
Settings without a bearing on sizes are left out; a few of gpt-oss's that the quotation cut off, and the totals of OLMoE
and gpt-oss, are from memory. Tensor names and shapes are those of the published files: the index files name them, and
for DeepSeek-V2-Lite and gpt-oss also lists with shapes are public. `parameters` and `total_bytes` are the published
totals, which hold these lists to account.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

Tensors = dict[str, tuple[int, ...]]
BF16_BYTES = 2


@dataclass(frozen=True)
class RealModel:
    """A published model; its tensors are BF16, the packed ones bytes."""

    name: str
    config: dict[str, Any]
    parameters: int  # as published, as is what they are `packed_into` where they do not take two bytes each
    top_level: Tensors
    each_layer: Tensors
    dense_layer: Tensors = field(default_factory=dict)  # of the first layers, without experts
    dense_layers: int = 0
    moe_layer: Tensors = field(default_factory=dict)
    each_expert: Tensors = field(default_factory=dict)
    experts: int = 0
    packed_into: int | None = None

    @property
    def total_bytes(self) -> int:
        return self.packed_into or self.parameters * BF16_BYTES

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor in the files."""
        yield from self.top_level.items()
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            own = self.dense_layer if layer < self.dense_layers else self.moe_layer
            for name, shape in (self.each_layer | own).items():
                yield prefix + name, shape
            if layer >= self.dense_layers:
                for expert in range(self.experts):
                    for name, shape in self.each_expert.items():
                        yield prefix + name.format(expert), shape

    def header_files(self, shards: int = 3) -> dict[str, HollowFile]:
        """The index and the shards, of which there is only what comes before the weights."""
        names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
        tensors = list(self.tensors())
        share = -(-len(tensors) // shards)
        parts = {name: tensors[number * share : (number + 1) * share] for number, name in enumerate(names)}
        weight_map = {tensor: name for name, part in parts.items() for tensor, _ in part}
        index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        hollow = {name: _hollow_shard(part) for name, part in parts.items()}
        return {"model.safetensors.index.json": HollowFile(index, len(index))} | hollow


class HollowFile(NamedTuple):
    """The first bytes of a file and its length."""

    start: bytes
    size: int


def _hollow_shard(tensors: list[tuple[str, tuple[int, ...]]]) -> HollowFile:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors:
        packed = name.endswith(("_blocks", "_scales"))
        nbytes = prod(shape) * (1 if packed else BF16_BYTES)
        header[name] = {"dtype": "U8" if packed else "BF16", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    raw = json.dumps(header).encode()
    start = struct.pack("<Q", len(raw)) + raw
    return HollowFile(start, len(start) + end)


def attention(hidden: int, queries: int, keys: int) -> Tensors:
    return {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
    }


def norms(hidden: int) -> Tensors:
    return {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}


def ends(vocabulary: int, hidden: int) -> Tensors:
    return {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }


def gated(prefix: str, hidden: int, width: int) -> Tensors:
    return {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }


QWEN3_30B_A3B = RealModel(
    name="Qwen/Qwen3-30B-A3B",
    config={
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    parameters=61_064_245_248 // 2,  # total_size in model.safetensors.index.json
    top_level=ends(151936, 2048),
    each_layer=attention(2048, 4096, 512)
    | norms(2048)
    | {"self_attn.q_norm.weight": (128,), "self_attn.k_norm.weight": (128,), "mlp.gate.weight": (128, 2048)},
    each_expert=gated("mlp.experts.{}", 2048, 768),
    experts=128,
)

OLMOE_1B_7B = RealModel(
    name="allenai/OLMoE-1B-7B-0924",
    config={
        "architectures": ["OlmoeForCausalLM"],
        "attention_bias": False,
        "clip_qkv": None,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "max_position_embeddings": 4096,
        "model_type": "olmoe",
        "norm_topk_prob": False,
        "num_attention_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 16,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 50304,
    },
    parameters=6_919_161_856,  # as the hub shows it
    top_level=ends(50304, 2048),
    each_layer=attention(2048, 2048, 2048)
    | norms(2048)
    | {"self_attn.q_norm.weight": (2048,), "self_attn.k_norm.weight": (2048,), "mlp.gate.weight": (64, 2048)},
    each_expert=gated("mlp.experts.{}", 2048, 1024),
    experts=64,
)

MIXTRAL_8X7B = RealModel(
    name="mistralai/Mixtral-8x7B-v0.1",
    config={
        "architectures": ["MixtralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mixtral",
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 32000,
    },
    parameters=93_405_585_408 // 2,  # total_size in model.safetensors.index.json
    top_level=ends(32000, 4096),
    each_layer=attention(4096, 4096, 1024) | norms(4096) | {"block_sparse_moe.gate.weight": (8, 4096)},
    each_expert={
        "block_sparse_moe.experts.{}.w1.weight": (14336, 4096),
        "block_sparse_moe.experts.{}.w2.weight": (4096, 14336),
        "block_sparse_moe.experts.{}.w3.weight": (14336, 4096),
    },
    experts=8,
)

DEEPSEEK_V2_LITE = RealModel(
    name="deepseek-ai/DeepSeek-V2-Lite",
    config={
        "architectures": ["DeepseekV2ForCausalLM"],
        "attention_bias": False,
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": 1408,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16",
        "v_head_dim": 128,
        "vocab_size": 102400,
    },
    parameters=15_706_484_224,  # as the hub shows it
    top_level=ends(102400, 2048),
    each_layer=norms(2048)
    | {
        "self_attn.kv_a_layernorm.weight": (512,),
        "self_attn.kv_a_proj_with_mqa.weight": (576, 2048),
        "self_attn.kv_b_proj.weight": (4096, 512),
        "self_attn.o_proj.weight": (2048, 2048),
        "self_attn.q_proj.weight": (3072, 2048),
    },
    dense_layer=gated("mlp", 2048, 10944),
    dense_layers=1,
    moe_layer=gated("mlp.shared_experts", 2048, 2816) | {"mlp.gate.weight": (64, 2048)},
    each_expert=gated("mlp.experts.{}", 2048, 1408),
    experts=64,
)

GPT_OSS_20B_BF16 = RealModel(
    name="unsloth/gpt-oss-20b-BF16",
    config={
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 201088,
    },
    parameters=20_914_757_184,
    top_level=ends(201088, 2880),
    each_layer=attention(2880, 4096, 512)
    | norms(2880)
    | {
        "self_attn.q_proj.bias": (4096,),
        "self_attn.k_proj.bias": (512,),
        "self_attn.v_proj.bias": (512,),
        "self_attn.o_proj.bias": (2880,),
        "self_attn.sinks": (64,),
        "mlp.router.weight": (32, 2880),
        "mlp.router.bias": (32,),
        "mlp.experts.gate_up_proj": (32, 2880, 5760),
        "mlp.experts.gate_up_proj_bias": (32, 5760),
        "mlp.experts.down_proj": (32, 2880, 2880),
        "mlp.experts.down_proj_bias": (32, 2880),
    },
)

MXFP4 = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}

_PACKED = {
    "mlp.experts.gate_up_proj_blocks": (32, 5760, 90, 16),
    "mlp.experts.gate_up_proj_scales": (32, 5760, 90),
    "mlp.experts.down_proj_blocks": (32, 2880, 90, 16),
    "mlp.experts.down_proj_scales": (32, 2880, 90),
}
_RAISED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")

GPT_OSS_20B = replace(
    GPT_OSS_20B_BF16,
    name="openai/gpt-oss-20b",
    config=GPT_OSS_20B_BF16.config | {"quantization_config": MXFP4},
    packed_into=13_761_264_768,  # total_size in model.safetensors.index.json
    each_layer={name: shape for name, shape in GPT_OSS_20B_BF16.each_layer.items() if name not in _RAISED} | _PACKED,
)

REAL_MODELS = (QWEN3_30B_A3B, OLMOE_1B_7B, GPT_OSS_20B, GPT_OSS_20B_BF16, MIXTRAL_8X7B, DEEPSEEK_V2_LITE)
