"""The decoding fast path against stock transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import ContextFull
from engine.model import kernels
from engine.model.experts import attach
from engine.model.fast_decode import FastDecoder
from engine.model.kernels.attention import CHUNK
from engine.model.kernels.decode_kernels import DecodeKernels
from engine.model.kv_cache import KvCache
from engine.model.resident_experts import ResidentExperts, find_experts
from engine.model.stored_linear import StoredLinear
from tests.model.tiny_moe import FAST, ShuffledExperts, tiny_moe, token_ids

STEPS = 30


def decoder_after(model, provider, prompt, context_length=64):
    """A decoder whose cache transformers filled with the prompt."""
    attach(find_experts(model), provider)
    model.set_experts_implementation("expertflow")
    cache = KvCache(model.config, context_length)
    if prompt.shape[1]:
        model(prompt, past_key_values=cache)
    return FastDecoder(model, cache, provider), cache


def assert_close(ours: np.ndarray, stock: torch.Tensor) -> None:
    assert np.linalg.norm(ours - stock.numpy()) <= 1e-5 * float(stock.norm())


@pytest.mark.parametrize("name", FAST)
def test_logits_are_stocks_for_30_steps(name):
    model, ids = tiny_moe(name), token_ids(10 + STEPS)
    stock = model(ids).logits[0]
    decoder, cache = decoder_after(model, ResidentExperts(find_experts(model)), ids[:, :10])
    for position in range(10, 10 + STEPS):
        assert_close(decoder.step(int(ids[0, position])), stock[position])
    assert cache.length == 10 + STEPS


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_a_context_of_several_chunks_and_an_empty_one(name):
    model, ids = tiny_moe(name), token_ids(2 * CHUNK + 5)
    stock = model(ids).logits[0]
    decoder, cache = decoder_after(model, ResidentExperts(find_experts(model)), ids[:, :0], 2 * CHUNK + 5)
    for position in range(ids.shape[1]):
        ours = decoder.step(int(ids[0, position]))
        if position in (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK + 4):
            assert_close(ours, stock[position])


def test_stored_weights_in_bf16_equal_stock_on_the_same_values():
    model, ids = tiny_moe("mixtral"), token_ids(30)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.bfloat16().float()
            stored = StoredLinear.from_linear(module, module.weight.data.bfloat16())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, stored)
    for experts in find_experts(model):
        for parameter in experts.parameters():
            parameter.data = parameter.data.bfloat16().float()
    stock = model(ids).logits[0]
    decoder, _ = decoder_after(model, ResidentExperts(find_experts(model), torch.bfloat16), ids[:, :10])
    for position in range(10, 30):
        assert_close(decoder.step(int(ids[0, position])), stock[position])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_bits_do_not_depend_on_the_order_of_arrival(name):
    model, ids = tiny_moe(name), token_ids(25)
    runs = []
    for provider in (ResidentExperts(find_experts(model)), *(ShuffledExperts(model, seed) for seed in range(3))):
        decoder, _ = decoder_after(model, provider, ids[:, :5])
        runs.append([decoder.step(int(token)).tobytes() for token in ids[0, 5:]])
    assert all(run == runs[0] for run in runs)


def test_transformers_and_the_fast_path_share_one_cache():
    model, ids = tiny_moe("olmoe"), token_ids(24)
    stock = model(ids).logits[0]
    decoder, cache = decoder_after(model, ResidentExperts(find_experts(model)), ids[:, :6])
    for position in range(6, 12):
        decoder.step(int(ids[0, position]))
    middle = model(ids[:, 12:20], past_key_values=cache).logits[0]
    torch.testing.assert_close(middle, stock[12:20], rtol=1e-4, atol=1e-4)
    cache.crop(15)
    for position in range(15, 24):
        assert_close(decoder.step(int(ids[0, position])), stock[position])


def test_experts_of_a_dtype_the_kernels_cannot_read_go_through_torch():
    model, ids = tiny_moe("mixtral"), token_ids(14)
    stock = model(ids).logits[0]
    provider = ShuffledExperts(model, 0, torch.float64)
    decoder, _ = decoder_after(model, provider, ids[:, :10])
    for position in range(10, 14):
        assert_close(decoder.step(int(ids[0, position])), stock[position])


def test_a_failed_transfer_leaves_the_cache_as_it_was():
    model, ids = tiny_moe("mixtral"), token_ids(12)
    stock = model(ids).logits[0]

    class Failing(ResidentExperts):
        broken = False

        def acquire(self, layer, experts):
            if self.broken and layer == 1:
                raise OSError("unplugged")
            return super().acquire(layer, experts)

    provider = Failing(find_experts(model))
    decoder, cache = decoder_after(model, provider, ids[:, :11])
    provider.broken = True
    with pytest.raises(OSError, match="unplugged"):
        decoder.step(5)
    assert cache.length == 11
    provider.broken = False
    assert_close(decoder.step(int(ids[0, 11])), stock[11])


def test_a_full_context_is_refused():
    model = tiny_moe("mixtral")
    decoder, _ = decoder_after(model, ResidentExperts(find_experts(model)), token_ids(4), context_length=5)
    decoder.step(3)
    with pytest.raises(ContextFull):
        decoder.step(3)


@pytest.mark.parametrize("name", ["gpt_oss", "nemotron_h"])
def test_other_families_are_refused_by_name(name):
    reason = FastDecoder.supports(tiny_moe(name))
    assert reason is not None and type(tiny_moe(name)).__name__ in reason


class OtherRouter(nn.Module):
    pass


def test_anything_that_is_not_the_very_class_is_refused():
    model = tiny_moe("mixtral")
    assert FastDecoder.supports(model) is None
    assert "changes with the length" in changed(model.config, "rope_parameters", {"rope_type": "dynamic"}, model)
    layer = model.model.layers[2]
    assert "TopKRouter is a OtherRouter" in changed(layer.mlp, "gate", OtherRouter(), model)
    assert "RMSNorm is a LayerNorm" in changed(layer, "input_layernorm", nn.LayerNorm(48), model)
    assert "v_proj" in changed(layer.self_attn, "v_proj", nn.Bilinear(2, 2, 2), model)
    assert "plain gated form" in changed(layer.mlp.experts, "act_fn", nn.Mish(), model)
    assert FastDecoder.supports(model) is None
    with pytest.raises(ValueError, match="No fast path"):
        FastDecoder(tiny_moe("gpt_oss"), KvCache(model.config, 8), ResidentExperts([]))


def changed(owner, name, value, model) -> str:
    """The reason given while `owner.name` is another."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    reason = FastDecoder.supports(model)
    setattr(owner, name, before)
    return reason or ""


def test_clipped_projections_are_refused():
    model = tiny_moe("olmoe")
    assert "clipped" in changed(model.config, "clip_qkv", 3.0, model)


@pytest.mark.parametrize("change", ["activation", "bias"])
def test_a_shared_expert_that_the_kernels_do_not_know_goes_through_its_module(change):
    model, ids = tiny_moe("qwen2_moe"), token_ids(14)
    for layer in model.model.layers:
        expert = layer.mlp.shared_expert
        if change == "activation":
            expert.act_fn = torch.nn.Tanh()
        else:
            expert.up_proj.bias = torch.nn.Parameter(torch.linspace(-1, 1, expert.up_proj.out_features), False)
    stock = model(ids).logits[0]
    decoder, _ = decoder_after(model, ShuffledExperts(model, 0), ids[:, :10])
    for position in range(10, 14):
        assert_close(decoder.step(int(ids[0, position])), stock[position])


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_after_warming_up_a_step_compiles_nothing_more(name):
    model, ids = tiny_moe(name), token_ids(12)
    stages = []
    kernels.prepare(torch.float32, torch.bfloat16, True, lambda *progress: stages.append(progress))
    assert stages[0][1] == 0 and stages[-1][1] == stages[-1][2] == 11
    before = {name: len(compiled.signatures) for name, compiled in vars(DecodeKernels()).items()}
    decoder, _ = decoder_after(model, ResidentExperts(find_experts(model), torch.bfloat16), ids[:, :10])
    decoder.step(5)
    assert {name: len(compiled.signatures) for name, compiled in vars(DecodeKernels()).items()} == before
