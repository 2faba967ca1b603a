"""Tiny random MoE models made in memory, and experts providers that arrive in awkward ways."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    MixtralConfig,
    NemotronHConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from engine.model.resident_experts import ResidentExperts, ResidentLease, find_experts

VOCABULARY = 97
_SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QWEN = _SHAPE | {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
CONFIGS = {
    "mixtral": lambda: MixtralConfig(**_SHAPE, num_local_experts=6),
    "mixtral, sliding window": lambda: MixtralConfig(**_SHAPE, num_local_experts=6, sliding_window=7),
    "mixtral, gelu": lambda: MixtralConfig(**_SHAPE, num_local_experts=6, hidden_act="gelu"),
    "mixtral, yarn": lambda: MixtralConfig(
        **_SHAPE,
        head_dim=12,
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_QWEN, head_dim=20),
    "qwen3_moe, dense layer": lambda: Qwen3MoeConfig(
        **_QWEN, head_dim=20, norm_topk_prob=True, mlp_only_layers=[1], attention_bias=True
    ),
    "qwen2_moe": lambda: Qwen2MoeConfig(**_QWEN, shared_expert_intermediate_size=28),
    "olmoe": lambda: OlmoeConfig(**_SHAPE, num_experts=8, num_experts_per_tok=3),
    "gpt_oss": lambda: GptOssConfig(**_SHAPE, head_dim=12, num_local_experts=6, num_experts_per_tok=2),
    "nemotron_h": lambda: NemotronHConfig(
        **_SHAPE,
        layers_block_type=["mamba", "moe", "attention", "moe"],
        n_routed_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=24,
        head_dim=12,
        mamba_num_heads=4,
        mamba_head_dim=12,
        ssm_state_size=8,
        n_groups=2,
        n_group=1,
        topk_group=1,
    ),
}
FAST = ("mixtral", "mixtral, sliding window", "mixtral, gelu", "mixtral, yarn", "qwen3_moe", "qwen3_moe, dense layer")
FAST += ("qwen2_moe", "olmoe")


def tiny_moe(name: str, seed: int = 0) -> Any:
    """A stock model of random weights large enough that routing and logits differ between tokens."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.15)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def token_ids(length: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (1, length), generator=generator)


class ShuffledExperts(ResidentExperts):
    """Experts arrive in an order and in batches drawn from `seed`."""

    def __init__(self, model: Any, seed: int, dtype: torch.dtype | None = None) -> None:
        super().__init__(find_experts(model), dtype)
        self._generator = torch.Generator().manual_seed(seed)

    def acquire(self, layer, experts):
        lease = super().acquire(layer, experts)
        [*waiting] = lease.next_batch()
        order = torch.randperm(len(waiting), generator=self._generator).tolist()
        return _Trickle([waiting[i] for i in order], self._generator)


class _Trickle(ResidentLease):
    def __init__(self, experts, generator):
        super().__init__(experts)
        self._generator = generator

    def next_batch(self):
        count = int(torch.randint(1, 4, (), generator=self._generator))
        batch, self._experts = self._experts[:count], self._experts[count:]
        return batch
