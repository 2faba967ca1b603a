"""Layers computed in one call against the same layers one by one."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import TransferFailed
from engine.model import kernels
from engine.model.resident_experts import ResidentExperts, find_experts
from tests.model.test_fast_decode import decoder_after
from tests.model.tiny_moe import tiny_moe, token_ids

PROMPT, STEPS = 10, 12


class Addressed(ResidentExperts):
    """Tells the addresses of all experts but a random few, others in each step; `every` so many layers it pauses, and
    then takes away the addresses of what was computed with."""

    def __init__(self, model, missing: float, every: int = 0) -> None:
        super().__init__(find_experts(model))
        self._pauses = np.array([every > 0 and layer % every == 0 for layer in range(len(self._layers))])
        self.paused: list[int] = []
        self._all = np.array([[expert.address for expert in layer] for layer in self._layers])
        self._random, self._missing = np.random.default_rng(0), missing
        self.acquired: list[int] = []
        self.told: list[tuple[int, bytes]] = []  # by layer: the ids
        self.observed_layers: list[int] = []

    def addresses(self) -> np.ndarray:
        self._told_addresses = np.where(self._random.random(self._all.shape) < self._missing, 0, self._all)
        return self._told_addresses

    def pauses(self) -> np.ndarray:
        return self._pauses

    def routed(self, layer, rows) -> None:
        x, ids, weights = rows
        assert self._told_addresses[layer, ids].all() and len(ids) == len(weights) and x.ndim == 1
        self.paused.append(layer)
        self._told_addresses[:layer] = 0

    def observe(self, layer, hidden, top_k_index, top_k_weights) -> None:
        if len(hidden) == 1:
            self.told.append((layer, top_k_index.numpy().tobytes()))

    def acquire(self, layer, experts):
        self.acquired.append(layer)
        return super().acquire(layer, experts)

    def computed(self, first, told, experts, shares) -> None:
        assert len(told) == len(experts) == len(shares)
        for layer, (hidden, ids, weights) in enumerate(told, first):
            assert (ids.numpy()[0] == experts[layer - first]).all() and hidden.shape[0] == weights.shape[0] == 1
            self.observe(layer, hidden, ids, weights)


def decoded(name: str, provider, model) -> list[bytes]:
    ids = token_ids(PROMPT + STEPS)
    decoder, _ = decoder_after(model, provider, ids[:, :PROMPT])
    return [decoder.step(int(token)).tobytes() for token in ids[0, PROMPT:]]


@pytest.mark.parametrize("name", ["mixtral", "mixtral, sliding window", "qwen3_moe", "olmoe"])
@pytest.mark.parametrize("missing", [0.0, 0.15])
@pytest.mark.parametrize("every", [0, 1, 2])
def test_the_same_bits_and_the_same_routing_whoever_is_missing_and_wherever_it_pauses(name, missing, every):
    model = tiny_moe(name)
    one_by_one, joined = Addressed(model, 1.0), Addressed(model, missing, every)
    assert decoded(name, one_by_one, model) == decoded(name, joined, model)
    assert one_by_one.told == joined.told
    layers = len(find_experts(model))
    acquired = len(joined.acquired) - 2 * layers  # the prompt and the first step
    assert acquired == 0 if missing == 0 else 0 < acquired < layers * (STEPS - 1)
    pausing = [layer for layer in range(layers) if every and layer % every == 0]
    if missing == 0:
        assert joined.paused == pausing * (STEPS - 1)
    else:
        assert len(joined.paused) < len(pausing) * (STEPS - 1) or not pausing


@pytest.mark.parametrize("name", ["qwen3_moe, dense layer", "qwen2_moe"])
def test_layers_that_are_not_all_alike_are_acquired_one_by_one(name):
    model = tiny_moe(name)
    provider = Addressed(model, 0.0)
    assert decoded(name, provider, model) == decoded(name, ResidentExperts(find_experts(model)), model)
    assert len(provider.acquired) == len(find_experts(model)) * (STEPS + 1)


def test_a_failure_between_two_calls_leaves_the_cache_as_it_was():
    model, ids = tiny_moe("mixtral"), token_ids(PROMPT + 3)
    provider = Addressed(model, 0.0)
    decoder, cache = decoder_after(model, provider, ids[:, :PROMPT])
    decoder.step(int(ids[0, PROMPT]))
    before = decoder.step(int(ids[0, PROMPT + 1])).copy()
    cache.crop(PROMPT + 1)

    def fails(layer, experts):
        raise TransferFailed("unplugged", "plug it in")

    provider.acquire, provider._missing = fails, 1.0
    with pytest.raises(TransferFailed, match="unplugged"):
        decoder.step(int(ids[0, PROMPT + 1]))
    assert cache.length == PROMPT + 1
    del provider.acquire
    provider._missing = 0.0
    assert decoder.step(int(ids[0, PROMPT + 1])).tobytes() == before.tobytes()


def test_warming_up_compiles_what_a_model_needs():
    import torch

    from engine.model.kernels.run_layers import run_layers

    kernels.prepare(torch.float32, torch.float32, True)
    compiled = len(run_layers.signatures)
    model = tiny_moe("mixtral")
    decoded("mixtral", Addressed(model, 0.0), model)
    assert len(run_layers.signatures) == compiled
