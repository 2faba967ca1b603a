"""Deeper routers on an earlier layer's input, against plain torch on the residual stream itself."""

from __future__ import annotations

import pytest
import torch

from engine.errors import UnsupportedModel
from engine.routing.lookahead import RouterLookahead
from tests.model.tiny_moe import tiny_moe, token_ids

FAMILIES = ("mixtral", "qwen3_moe", "qwen3_moe, dense layer", "qwen2_moe", "olmoe")


def residuals_and_inputs(model, ids):
    """For each MoE layer: the residual stream before its feed-forward norm, and what its router saw."""
    residuals, inputs = [], []
    layers = [layer for layer in model.model.layers if hasattr(layer.mlp, "experts")]
    hooks = [
        hook
        for layer in layers
        for hook in (
            layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: residuals.append(args[0][0])),
            layer.post_attention_layernorm.register_forward_hook(lambda _, args, out: inputs.append(out[0])),
        )
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return layers, residuals, inputs


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_deeper_router_on_the_same_residual_stream(name):
    model = tiny_moe(name)
    layers, residuals, inputs = residuals_and_inputs(model, token_ids(7))
    lookahead = RouterLookahead(model)
    assert lookahead.layers == len(layers)
    for layer in range(len(layers)):
        found = lookahead.probabilities(layer, inputs[layer].numpy(), distances=2)
        assert found.shape == (7, min(2, len(layers) - 1 - layer), lookahead.experts)
        for distance, deeper in enumerate(layers[layer + 1 : layer + 3]):
            logits = deeper.post_attention_layernorm(residuals[layer]) @ deeper.mlp.gate.weight.T
            torch.testing.assert_close(torch.from_numpy(found[:, distance]), logits.softmax(-1), rtol=1e-4, atol=1e-5)


def test_a_norm_weight_of_zero_gives_no_infinities():
    model = tiny_moe("mixtral")
    model.model.layers[0].post_attention_layernorm.weight[3] = 0.0
    _, _, inputs = residuals_and_inputs(model, token_ids(4))
    found = RouterLookahead(model).probabilities(0, inputs[0].numpy(), distances=2)
    assert torch.from_numpy(found).isfinite().all()


def test_families_whose_routers_are_not_known_are_refused_in_words():
    model = tiny_moe("gpt_oss")
    assert "GptOssForCausalLM" in RouterLookahead.supports(model)
    with pytest.raises(UnsupportedModel, match="GptOssForCausalLM") as refused:
        RouterLookahead(model)
    assert refused.value.remedy
    assert RouterLookahead.supports(tiny_moe("mixtral")) is None
