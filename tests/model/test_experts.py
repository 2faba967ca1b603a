"""The experts function against each family's own eager loop, whatever the order of arrival."""

from __future__ import annotations

import pytest
import torch

from engine.model import experts as experts_module
from engine.model.experts import ExpertsNotAttached, attach, plain_activation, register
from engine.model.resident_experts import ResidentExperts, find_experts
from tests.model.tiny_moe import CONFIGS, ShuffledExperts, tiny_moe, token_ids

NAMES = tuple(CONFIGS)


def routing(model, module, tokens: int, seed: int = 0):
    """Hidden states, distinct ids per token, weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, model.config.hidden_size, generator=generator)
    ids = torch.stack([torch.randperm(module.num_experts, generator=generator)[:2] for _ in range(tokens)])
    return x, ids, torch.rand(tokens, 2, generator=generator)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_equals_the_familys_own_eager_loop(name, tokens):
    model = tiny_moe(name)
    module = find_experts(model)[0]
    x, ids, weights = routing(model, module, tokens)
    model.set_experts_implementation("eager")
    expected = module(x, ids, weights)
    attach(find_experts(model), ResidentExperts(find_experts(model)))
    model.set_experts_implementation("expertflow")
    torch.testing.assert_close(module(x, ids, weights), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 4, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_order_of_arrival(name, tokens, dtype):
    model = tiny_moe(name)
    modules = find_experts(model)
    x, ids, weights = routing(model, modules[0], tokens)
    register()
    model.set_experts_implementation("expertflow")
    results = []
    for provider in (ResidentExperts(modules, dtype), *(ShuffledExperts(model, seed, dtype) for seed in range(4))):
        attach(modules, provider)
        results.append(modules[0](x, ids, weights))
    assert all(torch.equal(result, results[0]) for result in results)


def test_where_only_the_last_row_is_wanted_only_its_experts_are_asked_for():
    model = tiny_moe("mixtral")
    modules = find_experts(model)
    provider = ResidentExperts(modules)
    model.set_experts_implementation("expertflow")
    x, ids, weights = routing(model, modules[-1], 12)
    attach(modules, provider)
    whole = modules[-1](x, ids, weights), modules[0](x, ids, weights)
    asked, acquire, told = [], provider.acquire, []
    provider.acquire = lambda layer, experts: asked.append((layer, set(experts))) or acquire(layer, experts)
    provider.observe = lambda layer, *routing: told.append((layer, [array.clone() for array in routing]))
    attach(modules, provider, last_row_only=True)
    last, first = modules[-1](x, ids, weights), modules[0](x, ids, weights)
    assert asked[0] == (len(modules) - 1, set(ids[-1].tolist())) and asked[1][0] == 0
    torch.testing.assert_close(last[-1], whole[0][-1], rtol=1e-5, atol=1e-6)
    assert not last[:-1].any() and torch.equal(first, whole[1])
    assert [layer for layer, _ in told] == [len(modules) - 1, 0]  # once each, with all rows
    for _, routing_told in told:
        assert all(torch.equal(one, other) for one, other in zip(routing_told, (x, ids, weights), strict=True))


@pytest.mark.parametrize("tokens", [2, 20])
def test_ids_beyond_the_experts_mean_nobody(tokens):
    model = tiny_moe("mixtral")
    module = find_experts(model)[0]
    x, ids, weights = routing(model, module, tokens)
    ids[0] = module.num_experts
    ids[1, 0] = module.num_experts
    attach(find_experts(model), ResidentExperts(find_experts(model)))
    model.set_experts_implementation("expertflow")
    result = module(x, ids, weights)
    assert not result[0].any()
    weights[1, 0] = 0.0
    ids[1, 0] = (ids[1, 1] + 1) % module.num_experts
    torch.testing.assert_close(result[1], module(x, ids, weights)[1], rtol=1e-5, atol=1e-6)


def test_the_provider_sees_the_real_routing_and_is_asked_for_distinct_experts():
    model = tiny_moe("mixtral")
    seen = []

    class Recording(ResidentExperts):
        def observe(self, layer, hidden, top_k_index, top_k_weights):
            seen.append(("observe", layer, top_k_index.clone()))

        def acquire(self, layer, experts):
            seen.append(("acquire", layer, list(experts)))
            return super().acquire(layer, experts)

    attach(find_experts(model), Recording(find_experts(model)))
    model.set_experts_implementation("expertflow")
    model(token_ids(11))
    assert [(what, layer) for what, layer, _ in seen] == [(w, i) for i in range(3) for w in ("observe", "acquire")]
    for (_, _, index), (_, _, experts) in zip(seen[::2], seen[1::2], strict=True):
        assert experts == sorted(set(index.flatten().tolist()))


def test_older_routers_may_pass_weights_for_all_experts():
    model = tiny_moe("mixtral")
    module = find_experts(model)[0]
    x, ids, weights = routing(model, module, 5)
    attach(find_experts(model), ResidentExperts(find_experts(model)))
    model.set_experts_implementation("expertflow")
    dense_weights = torch.zeros(5, module.num_experts).scatter_(1, ids, weights)
    torch.testing.assert_close(module(x, ids, dense_weights), module(x, ids, weights))


def test_torch_alone_computes_the_same(monkeypatch):
    model = tiny_moe("mixtral")
    module = find_experts(model)[0]
    x, ids, weights = routing(model, module, 6)
    ids[2, 1] = module.num_experts
    provider = ResidentExperts(find_experts(model))
    attach(find_experts(model), provider)
    model.set_experts_implementation("expertflow")
    compiled = module(x, ids, weights)
    monkeypatch.setattr(experts_module.kernels, "available", lambda: False)
    attach(find_experts(model), provider)
    torch.testing.assert_close(module(x, ids, weights), compiled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 7])
def test_a_dtype_the_kernels_cannot_read_goes_through_torch(tokens):
    model = tiny_moe("mixtral")
    module = find_experts(model)[0]
    x, ids, weights = routing(model, module, tokens)
    model.set_experts_implementation("eager")
    expected = module(x, ids, weights)
    attach(find_experts(model), ResidentExperts(find_experts(model), torch.float64))
    model.set_experts_implementation("expertflow")
    torch.testing.assert_close(module(x, ids, weights), expected, rtol=1e-4, atol=1e-5)


def test_only_the_plain_gated_form_goes_to_the_kernels():
    plain = {name: plain_activation(find_experts(tiny_moe(name))[0]) for name in ("mixtral", "gpt_oss", "nemotron_h")}
    assert plain == {"mixtral": 0, "gpt_oss": None, "nemotron_h": None}


def test_a_model_without_provider_says_so():
    model = tiny_moe("mixtral")
    register()
    model.set_experts_implementation("expertflow")
    with pytest.raises(ExpertsNotAttached, match="MixtralExperts has no expert provider"):
        model(token_ids(2))
