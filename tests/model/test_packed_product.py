"""Products with packed matrices equal those with the matrices that bitsandbytes and transformers unpack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitsandbytes.functional import get_4bit_type
from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors

from engine.checkpoint.quantised.formats import pack
from engine.model import kernels, packed_on_card, packed_product, upcast
from engine.model.packed_product import MXFP4, NF4, PackedMatrix, linear, raised, raised_by_torch

KINDS = ("int8", "nf4", "mxfp4")


def matrix(kind: str, outputs: int, inputs: int) -> PackedMatrix:
    generator = torch.Generator().manual_seed(outputs + inputs)
    if kind == "mxfp4":
        numbers = torch.randint(256, (outputs, -(-inputs // 32) * 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(118, 131, (outputs, -(-inputs // 32)), dtype=torch.uint8, generator=generator)
        return PackedMatrix(numbers, scales)
    return PackedMatrix(*pack(torch.randn(outputs, inputs, generator=generator), kind))


def rows(count: int, inputs: int) -> torch.Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (7, 33), (48, 64), (65, 160)])
def test_products_equal_those_with_the_raised_matrix(kind, outputs, inputs, with_kernels, monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: with_kernels)
    weight = matrix(kind, outputs, inputs)
    plain = raised_by_torch(weight)
    torch.testing.assert_close(raised(weight), plain, rtol=0, atol=0)
    bias = torch.randn(outputs)
    for count in (1, 4, 5, 40):
        x = rows(count, inputs)
        expected = x @ plain[:, :inputs].t() + bias
        torch.testing.assert_close(linear(x, weight, bias), expected, rtol=1e-4, atol=1e-4)
        out = torch.empty(count, outputs)
        assert linear(x, weight, bias, out) is out
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_raise_a_piece_at_a_time(kind, monkeypatch):
    weight, x = matrix(kind, 50, 96), rows(9, 96)
    whole = linear(x, weight)
    sizes = []
    monkeypatch.setattr(upcast, "PIECE_BYTES", 4 * 128 * 7)
    monkeypatch.setattr(packed_product, "raised", lambda piece: sizes.append(piece.outputs) or raised_by_torch(piece))
    torch.testing.assert_close(linear(x, weight), whole, rtol=1e-4, atol=1e-4)
    assert sum(sizes) == 50 and len(sizes) > 4


def test_tables_are_those_of_the_libraries():
    assert torch.equal(torch.tensor(NF4), get_4bit_type("nf4", device="cpu"))
    assert torch.equal(torch.tensor(MXFP4), torch.tensor(FP4_VALUES))


def test_mxfp4_is_unpacked_as_transformers_does():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (1, 6, 3, 16), dtype=torch.uint8, generator=generator)
    scales = torch.tensor([0, 1, 2, 100, 126, 127, 128, 200, 254] * 2, dtype=torch.uint8).view(1, 6, 3)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)[0].t()
    weight = PackedMatrix.of({"down_proj": blocks[0], "down_proj_scales": scales[0]}, "down_proj")
    assert torch.equal(raised(weight), theirs)
    assert torch.equal(raised_by_torch(weight), theirs)


def test_a_plain_parameter_is_not_packed():
    assert PackedMatrix.of({"down_proj": torch.ones(2, 2)}, "down_proj") is None


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantising_a_few_rows_at_a_time_changes_nothing(kind, monkeypatch):
    plain = torch.randn(40, 70, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    whole = pack(plain, kind)
    monkeypatch.setattr("engine.checkpoint.quantised.formats.ROWS_AT_ONCE_BYTES", 4 * 70 * 3)
    assert all(torch.equal(one, other) for one, other in zip(pack(plain, kind), whole, strict=True))
    error = (raised_by_torch(PackedMatrix(*whole))[:, :70] - plain.float()).norm() / plain.float().norm()
    assert 0 < error < (0.01 if kind == "int8" else 0.1)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_row_of_zeros_stays_zero(kind):
    weight = PackedMatrix(*pack(torch.zeros(2, 64), kind))
    assert torch.equal(linear(rows(1, 64), weight), torch.zeros(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cards_products_equal_the_processors(kind, dtype):
    """On the CPU here: bitsandbytes answers the same calls with its CPU kernels."""
    weight = matrix(kind, 48, 100)
    bias = torch.randn(48)
    for count in (1, 9):
        x = rows(count, 100)
        ours = packed_on_card.linear(x.to(dtype), weight, bias.to(dtype))
        assert ours.dtype == dtype
        expected = linear(x, weight, bias)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert (ours.float() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.skipif(not kernels.available(), reason="the kernels cannot run here")
@pytest.mark.parametrize("high_first", [True, False])
def test_look_ups_without_the_instruction_for_them(high_first):
    """On any processor but the oldest the others run, so these are called by name."""
    from engine.model.kernels.packed_product import plain_block_dot, plain_block_raise

    numbers = np.random.default_rng(0).integers(256, size=24, dtype=np.uint8)
    table = np.array(NF4, np.float32)
    high, low = rows(2, 24).numpy()
    halves = table[numbers >> 4], table[numbers & 15]
    expected = sum((half * inputs)[8:].sum() for half, inputs in zip(halves, (high, low), strict=True))
    assert plain_block_dot(numbers, 8, 16, table, high, low) == pytest.approx(expected, rel=1e-5)
    out = np.zeros(48, np.float32)
    plain_block_raise(numbers, 8, 16, table, np.float32(0.5), high_first, out)
    pair = halves if high_first else halves[::-1]
    assert np.array_equal(out[16:], 0.5 * np.stack(pair, axis=1).reshape(-1)[16:]) and not out[:16].any()
