"""A model loaded without its experts computes what stock transformers computes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from engine.checkpoint.dense_model import DenseModel, load_dense
from engine.model.experts import attach
from tests.naive_provider import NaiveProvider
from tests.tiny_models import FAMILIES, tiny_checkpoint, tiny_config

PROMPT = torch.randint(4, 150, (1, 20), generator=torch.Generator().manual_seed(5))
DECODE_STEPS = 4
TOLERANCE = 1e-4  # of the logits' norm


def stock_model(family: str, path) -> torch.nn.Module:
    causal = type(tiny_config(family)) in AutoModelForCausalLM._model_mapping
    auto_class = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    return auto_class.from_pretrained(path, dtype=torch.float32, experts_implementation="eager").eval()


def expertflow_model(path) -> DenseModel:
    dense = load_dense(path)
    attach(dense.experts_modules, NaiveProvider(dense.index))
    return dense


@torch.inference_mode()
def logits_of(model: torch.nn.Module, steps: int = DECODE_STEPS) -> list[torch.Tensor]:
    """Logits of the prompt, then of greedy decoding with the model's own cache."""
    out = model(PROMPT, use_cache=True)
    logits = [out.logits[0]]
    for _ in range(steps):
        token = logits[-1][-1:].argmax(-1, keepdim=True)
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0])
    return logits


def assert_same_logits(ours: torch.nn.Module, stock: torch.nn.Module) -> None:
    for got, expected in zip(logits_of(ours), logits_of(stock), strict=True):
        assert (got - expected).norm() <= TOLERANCE * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_stock(family, dtype):
    path = tiny_checkpoint(family, dtype, sharded=dtype == torch.bfloat16)
    dense = expertflow_model(path)
    tensors = [*dense.model.parameters(), *dense.model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert dense.resident_bytes == dense.index.dense_bytes
    assert_same_logits(dense.model, stock_model(family, path))
