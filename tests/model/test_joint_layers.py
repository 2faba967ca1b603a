"""Layers of several chats computed in one call against the same layers one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.model.experts import Pairs
from engine.model.fast_joint import FastJoint
from engine.model.kernels.run_joint_layers import group_pairs
from engine.model.resident_experts import find_experts
from tests.model.test_fast_joint import chats_after, texts
from tests.model.test_joined_layers import Addressed
from tests.model.tiny_moe import tiny_moe

STEPS = 5


class AddressedForChats(Addressed):
    """Keeps what was told of each joint pass, and checks whom it says were used."""

    def observe(self, layer, hidden, top_k_index, top_k_weights) -> None:
        told = (array.numpy().tobytes() for array in (hidden, top_k_index, top_k_weights))
        self.told.append((layer, *told))

    def computed(self, first, told, experts, weights) -> None:
        assert weights is None
        for layer, (hidden, ids, weights) in enumerate(told, first):
            assert experts[layer - first].tolist() == sorted(set(ids.flatten().tolist()))
            self.observe(layer, hidden, ids, weights)


def said(name: str, missing: float) -> tuple[list[bytes], AddressedForChats]:
    """Logits of passes of five chats, of two, and of five again."""
    model = tiny_moe(name)
    provider = AddressedForChats(model, missing)
    chats, step = chats_after(model, provider, texts()), FastJoint(model, provider)
    provider.told.clear()
    provider.acquired.clear()
    logits = []
    for turn in range(STEPS):
        together = chats[:5] if turn != 2 else chats[5:7]
        logits.append(step(together, [20 + turn + 7 * n for n in range(len(together))]).numpy().tobytes())
    return logits, provider


@pytest.mark.parametrize("name", ["mixtral", "mixtral, sliding window", "qwen3_moe", "olmoe"])
@pytest.mark.parametrize("missing", [0.0, 0.03])
def test_the_same_bits_and_the_same_routing_whoever_is_missing(name, missing):
    one_by_one, apart = said(name, 1.0)
    joined, together = said(name, missing)
    assert one_by_one == joined
    assert apart.told == together.told
    layers = len(apart.acquired) // STEPS
    acquired = len(together.acquired) - layers  # the first pass
    assert acquired == 0 if missing == 0 else 0 < acquired < layers * (STEPS - 1)


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe, dense layer"])
def test_what_one_call_cannot_compute_goes_layer_by_layer(name):
    one_by_one, _ = said(name, 1.0)
    joined, together = said(name, 0.0)
    assert one_by_one == joined
    assert len(together.acquired) == STEPS * len(find_experts(tiny_moe(name)))


def test_pairs_are_grouped_as_elsewhere():
    ids = np.array([[3, 1], [1, 0], [3, 4]])
    pairs = Pairs(torch.from_numpy(ids), 6)
    touched, firsts, lasts = np.empty((3, 6), np.int64)
    tokens, row_of_pair = np.empty(6, np.int64), np.empty((3, 2), np.int64)
    found = group_pairs(ids, touched, firsts, lasts, tokens, row_of_pair)
    assert touched[:found].tolist() == pairs.experts.tolist()
    assert [slice(*rows) for rows in zip(firsts[:found], lasts[:found], strict=True)] == [
        pairs.rows_of(expert) for expert in pairs.experts.tolist()
    ]
    assert (tokens == pairs.tokens).all() and (row_of_pair == pairs.row_of_pair).all()
