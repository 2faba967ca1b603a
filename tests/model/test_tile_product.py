"""Products of many rows against torch in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.activations import ACT2FN

from engine.model import kernels

assert kernels.available(), kernels.unavailable_reason()

from engine.model.kernels.activation import activation_number  # noqa: E402
from engine.model.kernels.storage import kernel_view  # noqa: E402
from engine.model.kernels.tile_product import (  # noqa: E402
    BLOCKS_TOGETHER,
    LANES,
    TILE_OUTPUTS,
    expert_rows,
    multiply_rows,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
many_rows = st.integers(1, LANES * (BLOCKS_TOGETHER + 2))
outputs = st.integers(TILE_OUTPUTS, 67)
sizes = st.integers(1, 67)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_product(out: np.ndarray, exact: torch.Tensor, scale: torch.Tensor) -> None:
    assert (np.abs(out - exact.numpy()) <= 2e-6 * scale.numpy() + 1e-12).all()


@settings(deadline=None, max_examples=80)
@given(outputs, sizes, many_rows, st.sampled_from(DTYPES), st.integers(0, 999))
def test_rows_times_a_weight_is_the_product(out_features, in_features, rows, dtype, seed):
    weight, x = normal(seed, out_features, in_features).to(dtype), normal(seed + 1, rows, in_features)
    out = np.full((rows, out_features), np.nan, np.float32)
    multiply_rows(kernel_view(weight), x.numpy(), out)
    assert_product(out, x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T)


@pytest.mark.parametrize("rows", [1, 8, 9, 40])
def test_a_row_with_nan_spoils_no_other(rows):
    x = torch.ones(rows, 30)
    x[0, 3] = float("nan")
    out = np.empty((rows, 7), np.float32)
    multiply_rows(kernel_view(torch.ones(7, 30, dtype=torch.bfloat16)), x.numpy(), out)
    assert np.isnan(out[0]).all() and (out[1:] == 30).all()


@settings(deadline=None, max_examples=80)
@given(
    st.integers(TILE_OUTPUTS, 40),
    st.integers(TILE_OUTPUTS // 2, 40),
    many_rows,
    st.sampled_from(DTYPES),
    st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "relu"]),
    st.integers(0, 999),
)
def test_an_expert_computes_its_rows(width, intermediate, rows, dtype, name, seed):
    gate_up, down = normal(seed, 2 * intermediate, width).to(dtype), normal(seed + 1, width, intermediate).to(dtype)
    x = normal(seed + 2, rows + 3, width)
    tokens = np.random.default_rng(seed).choice(rows + 3, rows)
    out = np.full((rows, width), np.nan, np.float32)
    act = ACT2FN[name]
    expert_rows(kernel_view(gate_up), kernel_view(down), activation_number(act), x.numpy(), tokens, out)
    gate, up = (x[tokens].double() @ gate_up.double().T).chunk(2, dim=-1)
    hidden = act(gate) * up
    scale = (hidden.abs() + 1) @ down.double().abs().T * width
    assert_product(out, hidden @ down.double().T, scale)


def test_a_rows_result_does_not_depend_on_the_others_beside_it():
    weight, x = kernel_view(normal(1, 30, 50).to(torch.bfloat16)), normal(2, 100, 50)
    together = np.empty((100, 30), np.float32)
    multiply_rows(weight, x.numpy(), together)
    for rows in (slice(0, 8), slice(3, 20), slice(99, 100)):
        part = np.empty((rows.stop - rows.start, 30), np.float32)
        multiply_rows(weight, x[rows].numpy(), part)
        assert part.tobytes() == together[rows].tobytes()
