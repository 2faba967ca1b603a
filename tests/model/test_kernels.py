"""The compiled kernels against numpy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model import kernels

assert kernels.available(), kernels.unavailable_reason()

from engine.model.kernels.activation import activation_number  # noqa: E402
from engine.model.kernels.declare import kernel  # noqa: E402
from engine.model.kernels.expert_mlp import add_shared_expert, expert_mlp  # noqa: E402
from engine.model.kernels.exponential import exp  # noqa: E402
from engine.model.kernels.matvec import matvec  # noqa: E402
from engine.model.kernels.routing import combine, route  # noqa: E402
from engine.model.kernels.storage import half_to_float32, kernel_view, to_float32  # noqa: E402

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
sizes = st.integers(1, 67)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, st.integers(1, 4), st.sampled_from(DTYPES), st.integers(0, 999))
def test_matvec_is_the_product(out_features, in_features, rows, dtype, seed):
    weight, x = normal(seed, out_features, in_features).to(dtype), normal(seed + 1, rows, in_features)
    out = np.full((rows, out_features), np.nan, np.float32)
    matvec(kernel_view(weight), x.numpy(), out)
    exact = x.double() @ weight.double().T
    scale = x.double().abs() @ weight.double().abs().T
    assert (np.abs(out - exact.numpy()) <= 1e-6 * scale.numpy() + 1e-12).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_matvec_keeps_what_is_not_finite(dtype, special):
    weight = torch.ones(3, 40, dtype=dtype)
    weight[1, 17] = special
    out = np.empty((1, 3), np.float32)
    matvec(kernel_view(weight), np.ones((1, 40), np.float32), out)
    assert out[0, 0] == out[0, 2] == 40
    np.testing.assert_equal(out[0, 1], np.float32(special))


def test_every_half_is_raised_exactly():
    bits = np.arange(1 << 16).astype(np.uint16)
    expected = bits.view(np.float16).astype(np.float32)
    instruction, arithmetic = np.empty(1 << 16, np.float32), np.empty(1 << 16, np.float32)
    _raise(bits.view(np.int16), instruction)
    _raise_by_arithmetic(bits, arithmetic)
    np.testing.assert_array_equal(instruction, expected)
    np.testing.assert_array_equal(arithmetic, expected)


@kernel
def _raise(stored, out):
    for i in range(out.shape[0]):
        out[i] = to_float32(stored[i])


@kernel
def _raise_by_arithmetic(bits, out):
    for i in range(out.shape[0]):
        out[i] = half_to_float32(np.uint32(bits[i]))


@kernel
def _exp(x, out):
    for i in range(out.shape[0]):
        out[i] = exp(x[i])


def test_exp_is_accurate_and_ends_in_zero_and_infinity():
    x = np.linspace(-87.3, 88.3, 200_001).astype(np.float32)
    out = np.empty_like(x)
    _exp(x, out)
    assert np.max(np.abs(out / np.exp(x.astype(np.float64)) - 1)) < 2.4e-7
    edges = np.array([-np.inf, -100, 100, np.inf, np.nan, 0], np.float32)
    out = np.empty_like(edges)
    _exp(edges, out)
    np.testing.assert_array_equal(out, np.array([0, 0, np.inf, np.inf, np.nan, 1], np.float32))


ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_pytorch_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


class Slots:
    """Experts side by side, each in a slot with something in front of and between its parameters."""

    def __init__(self, experts: int, width: int, intermediate: int, dtype: torch.dtype, seed: int) -> None:
        self.gate_up = (normal(seed, experts, 2 * intermediate, width) * 0.3).to(dtype)
        self.down = (normal(seed + 1, experts, width, intermediate) * 0.3).to(dtype)
        self.gate_up_offset = 64
        self.down_offset = -(-(64 + self.gate_up[0].nbytes + 1) // 64) * 64
        self.memory = torch.zeros(experts, self.down_offset + self.down[0].nbytes, dtype=torch.uint8)
        for slot, gate_up, down in zip(self.memory, self.gate_up, self.down, strict=True):
            slot[64 : 64 + gate_up.nbytes] = gate_up.view(-1).view(torch.uint8)
            slot[self.down_offset :] = down.view(-1).view(torch.uint8)

    def run(self, experts, x, tokens, rows, activation, out):
        expert_mlp(
            np.array([self.memory[e].data_ptr() for e in experts], np.int64),
            self.gate_up_offset,
            self.down_offset,
            kernel_view(self.down),
            activation,
            x.numpy(),
            np.array(tokens, np.int64),
            np.array(rows, np.int64),
            np.empty((len(experts), self.down.shape[2]), np.float32),
            out,
        )


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, st.sampled_from(DTYPES), st.sampled_from(list(ACTIVATIONS)), st.integers(0, 999), st.data())
def test_experts_are_computed_where_they_lie(width, intermediate, dtype, name, seed, data):
    from transformers.activations import ACT2FN

    slots = Slots(3, width, intermediate, dtype, seed)
    x = normal(seed + 2, 2, width)
    experts = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    tokens = [data.draw(st.integers(0, 1)) for _ in experts]
    rows = data.draw(st.permutations(range(len(experts))))
    out = np.full((len(experts), width), np.nan, np.float32)
    slots.run(experts, x, tokens, rows, activation_number(ACT2FN[name]), out)
    for expert, token, row in zip(experts, tokens, rows, strict=True):
        gate, up = (slots.gate_up[expert].double() @ x[token].double()).chunk(2)
        exact = slots.down[expert].double() @ (ACTIVATIONS[name](gate) * up)
        np.testing.assert_allclose(out[row], exact.numpy(), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, st.sampled_from(DTYPES), st.sampled_from(list(ACTIVATIONS)), st.integers(0, 999))
def test_the_shared_expert_is_scaled_and_added(width, intermediate, dtype, name, seed):
    from transformers.activations import ACT2FN

    shapes = ((intermediate, width), (intermediate, width), (width, intermediate))
    gate, up, down = ((normal(seed + i, *shape) * 0.3).to(dtype) for i, shape in enumerate(shapes))
    x, scale, residual = (normal(seed + i, width) for i in (3, 4, 5))
    out, hidden = residual.numpy().copy(), np.empty(intermediate, np.float32)
    weights = [kernel_view(weight) for weight in (gate, up, down)]
    add_shared_expert(*weights, activation_number(ACT2FN[name]), scale.numpy(), x.numpy(), hidden, out)
    active = ACTIVATIONS[name](gate.double() @ x.double()) * (up.double() @ x.double())
    exact = residual.double() + torch.sigmoid(scale.double() @ x.double()) * (down.double() @ active)
    np.testing.assert_allclose(out, exact.numpy(), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(DTYPES), st.integers(0, 999))
def test_an_experts_output_does_not_depend_on_its_company(dtype, seed):
    slots = Slots(4, 96, 80, dtype, seed)
    x = normal(seed, 1, 96)
    together, alone = np.empty((4, 96), np.float32), np.empty((4, 96), np.float32)
    slots.run([0, 1, 2, 3], x, [0] * 4, [0, 1, 2, 3], 0, together)
    for expert in (2, 0, 3, 1):
        slots.run([expert], x, [0], [expert], 0, alone)
    assert together.tobytes() == alone.tobytes()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 999), st.data())
def test_routing_is_softmax_then_top_k(experts, width, renormalise, seed, data):
    top_k = data.draw(st.integers(1, experts))
    residual, norm, router = normal(seed, width), normal(seed + 1, width), normal(seed + 2, experts, width)
    x, probabilities = np.empty(width, np.float32), np.empty(experts, np.float32)
    ids, weights = np.empty(top_k, np.int64), np.empty(top_k, np.float32)
    arguments = (residual.numpy(), norm.numpy(), 1e-6, router.numpy(), renormalise, x, probabilities, ids, weights)
    route(*arguments)
    normed = norm * residual * torch.rsqrt(residual.pow(2).mean() + 1e-6)
    values, expected = torch.softmax(router @ normed, -1).topk(top_k)
    np.testing.assert_allclose(x, normed.numpy(), rtol=1e-5, atol=1e-6)
    assert ids.tolist() == expected.tolist()
    np.testing.assert_allclose(weights, (values / values.sum() if renormalise else values).numpy(), rtol=2e-5)


def test_routing_of_nan_still_names_distinct_experts():
    ids, weights = np.empty(3, np.int64), np.empty(3, np.float32)
    nan = np.full(5, np.nan, np.float32)
    ones, router, scratch = np.ones(5, np.float32), np.ones((4, 5), np.float32), np.empty(4, np.float32)
    route(nan, ones, 1e-6, router, True, nan.copy(), scratch, ids, weights)
    assert len(set(ids.tolist())) == 3 and set(ids.tolist()) <= set(range(4))
    assert np.isnan(weights).all()


def test_combine_leaves_out_pairs_routed_to_nobody():
    rows = normal(0, 3, 5)
    result = np.full((2, 5), np.nan, np.float32)
    weights = np.array([[0.5, 0.25], [2.0, 9.0]], np.float32)
    combine(rows.numpy(), np.array([[2, 0], [1, -1]], np.int64), weights, result)
    np.testing.assert_allclose(result[0], (0.5 * rows[2] + 0.25 * rows[0]).numpy(), rtol=1e-6)
    np.testing.assert_allclose(result[1], (2.0 * rows[1]).numpy(), rtol=1e-6)
