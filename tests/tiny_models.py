"""Tiny random checkpoints of every family on transformers' experts interface, made with stock `save_pretrained`.

`tiny_checkpoint("mixtral")` builds one on first use and keeps it until the process ends. Weights are large enough
(standard deviation 0.2) that routing and logits differ between tokens.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB_SIZE = 160
EOS_TOKEN_ID = 3
WEIGHT_STD = 0.2
KEEP_INITIALISED = ("A_log", "conv1d", "dt_proj", "slope", "inv_freq")  # have to keep their form

# Settings given to every family that has them.
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 64,
    "sliding_window": 16,
    "sliding_window_size": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "unpadded_vocab_size": VOCAB_SIZE,
    "rel_extent": 32,
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_nextn_predict_layers": 0,
    "initializer_range": WEIGHT_STD,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS_TOKEN_ID,
    "tie_word_embeddings": False,
    "use_cache": True,
}

MLA = {"num_key_value_heads": 4}
HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}

# What a family needs beyond that.
FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": {"global_attn_every_n_layers": 3},
    "aria_text": {"moe_num_experts": 8},
    "axk1": MLA,
    "axk2": MLA,
    "bailing_hybrid": MLA | HYBRID,
    "beam": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "cohere2_moe": {},
    "deepseek_v2": MLA,
    "deepseek_v3": MLA | {"n_group": 2},
    "deepseek_v32": MLA,
    "deepseek_v4": {"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 8},
    "dots1": {},
    "dots3_note_text": MLA
    | {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 12,
        "swa_qk_nope_head_dim": 8,
        "swa_qk_rope_head_dim": 4,
        "swa_v_head_dim": 8,
    },
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 2},
    "exaone_moe": {},
    "flex_olmo": {},
    "flint": {"decoder_sparse_step": 1, "mlp_only_layers": [0]},
    "gemma4_text": {
        "enable_moe_block": True,
        "top_k_experts": 2,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
    },
    "glm4_moe": {},
    "glm4_moe_lite": MLA,
    "glm_moe_dsa": MLA,
    "gpt_oss": {},
    "granitemoe": {"tie_word_embeddings": True},
    "granitemoe_swa": {},
    "granitemoehybrid": HYBRID | {"shared_intermediate_size": 40, "mamba_n_heads": 4},
    "granitemoeshared": {"shared_intermediate_size": 40},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "inkling2_text": {"n_layers_per_attn_res_block": 2},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2},
    "kimi_linear": MLA | HYBRID | {"linear_head_dim": 8, "linear_num_heads": 4, "q_lora_rank": None},
    "kolibri1": {},
    "laguna": {},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "mellum": {},
    "mimo_v2_flash": {},
    "minimax": {"block_size": 8},
    "minimax_m2": {},
    "minimax_m3_vl_text": {"dense_intermediate_size": 32, "shared_intermediate_size": 24, "rotary_dim": 4},
    "mistral4": MLA,
    "mixtral": {"sliding_window": None},
    "nemotron_h": {
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 8,
    },
    "olmoe": {"num_key_value_heads": 4},
    "phimoe": {},
    "qwen2_moe": {"tie_word_embeddings": True},
    "qwen3_5_moe_text": HYBRID,
    "qwen3_moe": {},
    "qwen3_next": HYBRID,
    "qwen4_exp_text": HYBRID
    | {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 8,
    },
    "solar_open": {},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def tiny_config(family: str) -> Any:
    """A config of `family` with 3 layers, width 32 and 8 experts, as far as the family has these settings."""
    config_class = CONFIG_MAPPING[family]
    known = set(dir(config_class)) | set(getattr(config_class, "__dataclass_fields__", ()))
    known |= set(getattr(config_class, "attribute_map", ()))
    settings = {name: value for name, value in COMMON.items() if name in known}
    return config_class(**{**settings, **FAMILIES.get(family, {})})


def auto_class(family: str) -> type:
    """Mistral 4 alone is a text model that transformers lists among those for images and text."""
    causal = CONFIG_MAPPING[family] in AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if causal else AutoModelForImageTextToText


def tiny_model(family: str) -> torch.nn.Module:
    """A stock model of `family` with random weights, the same in every run."""
    torch.manual_seed(zlib.crc32(family.encode()))
    model = auto_class(family).from_config(tiny_config(family), dtype=torch.float32)
    _randomise(model)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=EOS_TOKEN_ID, pad_token_id=0)
    return model.eval()


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point() or any(part in name for part in KEEP_INITIALISED):
            continue
        if isinstance(tensor, torch.nn.Parameter) and tensor.ndim >= 2:
            tensor.normal_(0.0, WEIGHT_STD)
        elif isinstance(tensor, torch.nn.Parameter) or "correction_bias" in name:
            tensor.add_(torch.randn_like(tensor), alpha=0.1)


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="tiny-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def tiny_checkpoint(family: str, dtype: torch.dtype = torch.float32, sharded: bool = False) -> Path:
    """Folder of a checkpoint of `family`; `sharded` spreads it (also parts of one expert) over several files.

    Tests that damage a checkpoint must work on a copy.
    """
    folder = _root() / f"{family}-{str(dtype).removeprefix('torch.')}{'-sharded' if sharded else ''}"
    model = tiny_model(family).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder, max_shard_size="20KB" if sharded else "5GB")
    AutoConfig.from_pretrained(folder)
    return folder
