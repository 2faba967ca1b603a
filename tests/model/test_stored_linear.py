"""Stored layers give what nn.Linear and nn.Embedding give in fp32 on the same weights."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from engine.model import stored_linear, upcast
from engine.model.stored_linear import StoredEmbedding, StoredLinear

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def stored_and_exact(out_features: int, in_features: int, bias: bool, dtype: torch.dtype):
    """The stored layer and a stock one with the same values."""
    torch.manual_seed(out_features)
    exact = nn.Linear(in_features, out_features, bias=bias)
    stored = exact.weight.data.to(dtype)
    exact.weight.data = stored.float()
    return StoredLinear.from_linear(exact, stored), exact


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (4,), (5,), (1, 1), (2, 9), (0,)])
def test_equals_linear_in_fp32(dtype, bias, shape):
    stored, exact = stored_and_exact(33, 70, bias, dtype)
    x = torch.randn(*shape, 70)
    with torch.no_grad():
        torch.testing.assert_close(stored(x), exact(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_larger_than_a_piece_are_raised_piece_by_piece(dtype, monkeypatch):
    monkeypatch.setattr(upcast, "PIECE_BYTES", 4 * 70 * 7)
    stored, exact = stored_and_exact(33, 70, True, dtype)
    x = torch.randn(9, 70)
    with torch.no_grad():
        torch.testing.assert_close(stored(x), exact(x), rtol=1e-5, atol=1e-5)
        transposed = upcast.linear_transposed(x, stored.weight.t().contiguous(), stored.bias)
        torch.testing.assert_close(transposed, exact(x), rtol=1e-5, atol=1e-5)


def test_scratch_made_in_inference_mode_serves_outside_of_it_too(monkeypatch):
    monkeypatch.setattr(upcast, "_scratch", threading.local())
    stored, exact = stored_and_exact(12, 20, False, torch.bfloat16)
    x = torch.randn(5, 20)
    with torch.inference_mode():
        stored(x)
    with torch.no_grad():
        torch.testing.assert_close(stored(x), exact(x), rtol=1e-5, atol=1e-5)


def test_without_kernels_torch_gives_the_same(monkeypatch):
    monkeypatch.setattr(stored_linear.kernels, "available", lambda: False)
    stored, exact = stored_and_exact(12, 20, True, torch.bfloat16)
    x = torch.randn(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(stored(x), exact(x), rtol=1e-5, atol=1e-5)


def test_the_weight_is_no_copy_and_no_parameter():
    weight = torch.randn(8, 8).to(torch.bfloat16)
    layer = StoredLinear(weight)
    assert layer.weight.data_ptr() == weight.data_ptr()
    assert not list(layer.parameters()) and not layer.state_dict()
    assert (layer.in_features, layer.out_features) == (8, 8)


def test_embedding_looks_up_in_fp32():
    weight = torch.randn(10, 6).to(torch.bfloat16)
    rows = StoredEmbedding(weight)(torch.tensor([[3, 9]]))
    assert rows.dtype == torch.float32
    assert torch.equal(rows[0], weight[[3, 9]].float())
