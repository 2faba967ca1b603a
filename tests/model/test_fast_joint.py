"""Several chats in one pass of the fast path: each says what it says alone, whoever is beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.errors import ContextFull
from engine.model.experts import attach
from engine.model.fast_joint import FastJoint
from engine.model.joint_product import SideBySide, multiply_experts
from engine.model.kernels.attention import CHUNK
from engine.model.kernels.storage import kernel_view
from engine.model.kv_cache import KvCache
from engine.model.resident_experts import ResidentExperts, find_experts
from tests.model.tiny_moe import FAST, ShuffledExperts, tiny_moe, token_ids

LENGTHS = (3, 40, 17, 0, 9, 1, 25, 12)


def texts(lengths=LENGTHS) -> list[list[int]]:
    return [token_ids(length + 1, seed=length)[0, :length].tolist() for length in lengths]


def chats_after(model, provider, prompts, context_length=64) -> list[KvCache]:
    """Chats whose caches transformers filled with the prompts."""
    attach(find_experts(model), provider)
    model.set_experts_implementation("expertflow")
    chats = [KvCache(model.config, context_length) for _ in prompts]
    for chat, prompt in zip(chats, prompts, strict=True):
        if prompt:
            model(torch.tensor([prompt]), past_key_values=chat)
    return chats


def assert_close(ours: torch.Tensor, stock: torch.Tensor) -> None:
    assert float((ours - stock).norm()) <= 1e-5 * float(stock.norm())


@pytest.mark.parametrize("name", FAST)
def test_each_chat_says_what_it_says_alone(name):
    model, stock, prompts = tiny_moe(name), tiny_moe(name), texts()
    provider = ShuffledExperts(model, 0)
    chats, step = chats_after(model, provider, prompts), FastJoint(model, provider)
    everybody = list(range(len(prompts)))
    for turn, together in enumerate((everybody, everybody[::-1], [6, 1], [3], [0, 4, 2, 7, 5], everybody[1:])):
        tokens = [20 + 7 * turn + n for n in together]
        logits = step([chats[n] for n in together], tokens)
        for row, (n, token) in enumerate(zip(together, tokens, strict=True)):
            prompts[n].append(token)
            assert_close(logits[row], stock(torch.tensor([prompts[n]])).logits[0, -1])
    assert [chat.length for chat in chats] == [len(prompt) for prompt in prompts]


def test_a_chats_bits_do_not_depend_on_company_nor_on_the_order_of_arrival():
    model, prompts = tiny_moe("qwen3_moe"), texts()
    found = []
    for seed, together in enumerate((range(8), [1], [7, 1, 0], [1, 2, 3, 4, 5, 6])):
        provider = ShuffledExperts(model, seed)
        chats, step = chats_after(model, provider, prompts), FastJoint(model, provider)
        for token in (9, 30):
            logits = step([chats[n] for n in together], [token + n for n in together])
        found.append(logits[list(together).index(1)].numpy().tobytes())
    assert len(set(found)) == 1


def test_more_positions_than_a_chunk():
    model, stock, prompts = tiny_moe("mixtral"), tiny_moe("mixtral"), texts((CHUNK + 7, 3, 2 * CHUNK))
    provider = ResidentExperts(find_experts(model))
    chats, step = chats_after(model, provider, prompts, 3 * CHUNK), FastJoint(model, provider)
    for row, logits in enumerate(step(chats, [5, 6, 7])):
        assert_close(logits, stock(torch.tensor([[*prompts[row], 5 + row]])).logits[0, -1])


def test_experts_of_a_dtype_the_kernels_cannot_read_go_through_torch():
    model, stock, prompts = tiny_moe("mixtral"), tiny_moe("mixtral"), texts()
    provider = ShuffledExperts(model, 0, torch.float64)
    logits = FastJoint(model, provider)(chats_after(model, provider, prompts), [11] * len(prompts))
    for row, prompt in enumerate(prompts):
        assert_close(logits[row], stock(torch.tensor([[*prompt, 11]])).logits[0, -1])


def test_a_failed_transfer_leaves_the_chats_as_they_were():
    class Failing(ResidentExperts):
        broken = True

        def acquire(self, layer, experts):
            if self.broken and layer == 1:
                raise OSError("unplugged")
            return super().acquire(layer, experts)

    model, stock, prompts = tiny_moe("mixtral"), tiny_moe("mixtral"), texts((3, 9))
    provider = Failing(find_experts(model))
    chats = [KvCache(model.config, 64) for _ in prompts]
    for chat, prompt in zip(chats, prompts, strict=True):
        stock(torch.tensor([prompt]), past_key_values=chat)
    step = FastJoint(model, provider)
    with pytest.raises(OSError, match="unplugged"):
        step(chats, [5, 6])
    assert [chat.length for chat in chats] == [3, 9]
    provider.broken = False
    logits = step(chats, [5, 6])
    assert_close(logits[1], stock(torch.tensor([[*prompts[1], 6]])).logits[0, -1])


def test_a_full_chat_is_told_before_anything_is_computed():
    model = tiny_moe("mixtral")
    provider = ResidentExperts(find_experts(model))
    short, full = KvCache(model.config, 64), chats_after(model, provider, [[5, 6, 7]], 3)[0]
    with pytest.raises(ContextFull):
        FastJoint(model, provider)([short, full], [8, 8])
    assert short.length == 0 and full.length == 3


def test_other_families_are_refused_by_name():
    assert "GptOss" in FastJoint.supports(tiny_moe("gpt_oss"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("inputs", [7, 40, 96])
def test_products_of_stored_matrices(dtype, inputs):
    generator = torch.Generator().manual_seed(3)
    matrices = [torch.randn(outputs, inputs, generator=generator).to(dtype) for outputs in (12, 61, 150)]
    for rows in range(1, 9):
        x, out = torch.randn(rows, inputs, generator=generator), np.full((rows, 223), np.nan, np.float32)
        SideBySide(*map(kernel_view, matrices)).multiply(x.numpy(), np.arange(rows), out)
        torch.testing.assert_close(torch.from_numpy(out), x @ torch.cat(matrices).float().T, rtol=1e-5, atol=1e-4)


def test_experts_have_rows_of_their_own():
    generator = torch.Generator().manual_seed(4)
    experts = torch.randn(3, 30, 20, generator=generator)
    x, tokens = torch.randn(5, 20, generator=generator), np.array([4, 0, 1, 2, 3, 4, 0, 1, 2])
    rows, out = [slice(8, 9), slice(1, 8)], np.zeros((9, 30), np.float32)  # nobody fills row 0
    addresses = np.array([experts[2].data_ptr(), experts[0].data_ptr()])
    multiply_experts(addresses, 30, rows, np.empty(0, np.float32), x.numpy(), tokens, out)
    expected = torch.cat([torch.zeros(1, 30), x[tokens[1:8]] @ experts[0].T, x[tokens[8:]] @ experts[2].T])
    torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-5, atol=1e-4)
