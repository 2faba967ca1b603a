"""The figures of `bench model`, each on a tiny model against the plainest way to get it."""

from __future__ import annotations

import math

import torch

from engine.lab.bench_model import RoutingTap, expert_share, perplexity, shuffle_experts
from engine.lab.held_out import Passage
from tests.model.tiny_moe import tiny_moe, token_ids
from tests.tiny_models import tiny_checkpoint

PASSAGES = [Passage(token_ids(20, seed)[0].tolist(), [False, *[seed % 2 == 0] * 9, *[True] * 10]) for seed in (1, 2)]


def test_perplexity_is_that_of_the_counted_tokens():
    model = tiny_moe("mixtral")
    losses = []
    for passage in PASSAGES:
        for place in range(1, 20):
            if passage.counted[place]:
                logits = model(torch.tensor([passage.ids[:place]])).logits[0, -1]
                losses.append(float(-logits.log_softmax(-1)[passage.ids[place]]))
    stages = []
    found = perplexity(model, PASSAGES, "tiny", lambda *stage: stages.append(stage))
    assert math.isclose(found, math.exp(sum(losses) / len(losses)), rel_tol=1e-4)
    assert stages[-1] == ("tiny", 2, 2)


def test_the_routing_is_kept_while_the_context_is_open():
    model = tiny_moe("mixtral")
    ids = token_ids(30)
    with RoutingTap(model) as tap:
        model(ids)
        logits = model(ids[:, :9], output_router_logits=True).router_logits
        first, second = tap.take()
    assert first.shape == (30, len(model.model.layers), model.config.num_experts_per_tok)
    for layer, scores in enumerate(logits):
        expected = scores.topk(model.config.num_experts_per_tok).indices
        assert sorted(second[:, layer].flatten().tolist()) == sorted(expected.flatten().tolist())
    model(ids)
    assert tap.take() == []


def test_shuffling_permutes_experts_and_changes_what_the_model_says():
    model, ids = tiny_moe("mixtral"), token_ids(12)
    before = [layer.mlp.gate.weight.clone() for layer in model.model.layers]
    logits = model(ids).logits
    shuffle_experts(model)
    for weight, layer in zip(before, model.model.layers, strict=True):
        assert sorted(weight.sum(1).tolist()) == sorted(layer.mlp.gate.weight.sum(1).tolist())
    assert not torch.allclose(logits, model(ids).logits, atol=1e-3)


def test_the_share_of_experts_is_counted_on_disk():
    from transformers import AutoModelForCausalLM

    path = tiny_checkpoint("mixtral")
    sizes = {name: p.numel() for name, p in AutoModelForCausalLM.from_pretrained(path).named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert math.isclose(expert_share(path), experts / sum(sizes.values()), rel_tol=1e-3)
