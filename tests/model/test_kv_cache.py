"""The key-value cache under transformers' own forward."""

from __future__ import annotations

import pytest
import torch

from engine.errors import ContextFull, UnsupportedModel
from engine.model.kv_cache import KvCache, kv_bytes
from tests.model.tiny_moe import tiny_moe, token_ids

PLAIN = ("mixtral", "mixtral, sliding window", "qwen3_moe", "gpt_oss")


def logits(model, ids, cache):
    return model(ids, past_key_values=cache).logits


@pytest.mark.parametrize("name", PLAIN)
def test_prefill_in_chunks_then_decoding_gives_the_whole_forwards_logits(name):
    model, ids = tiny_moe(name), token_ids(30)
    cache = KvCache(model.config, 32)
    pieces = [ids[:, :11], ids[:, 11:25], *ids[:, 25:].split(1, dim=1)]
    joined = torch.cat([logits(model, piece, cache) for piece in pieces], dim=1)
    torch.testing.assert_close(joined, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert cache.length == 30


@pytest.mark.parametrize("name", PLAIN)
def test_cropped_and_continued_equals_fresh(name):
    model, ids, other = tiny_moe(name), token_ids(20), token_ids(9, seed=5)
    cache = KvCache(model.config, 40)
    logits(model, ids, cache)
    cache.crop(12)
    assert cache.length == 12
    again = logits(model, other, cache)
    fresh = logits(model, torch.cat([ids[:, :12], other], dim=1), KvCache(model.config, 40))
    torch.testing.assert_close(again, fresh[:, 12:], rtol=1e-4, atol=1e-4)


def test_more_than_the_context_is_refused_with_both_numbers():
    model = tiny_moe("mixtral")
    cache = KvCache(model.config, 10)
    logits(model, token_ids(8), cache)
    with pytest.raises(ContextFull) as refused:
        logits(model, token_ids(3), cache)
    assert (refused.value.needed_tokens, refused.value.context_length) == (11, 10)
    cache.crop(8)
    logits(model, token_ids(2), cache)
    with pytest.raises(ContextFull):
        cache.require_room(1)


def test_an_interrupted_forward_is_taken_back_by_cropping():
    model, ids = tiny_moe("mixtral"), token_ids(12)
    cache = KvCache(model.config, 40)
    logits(model, ids[:, :6], cache)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.model.layers[1].mlp.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        logits(model, ids[:, 6:], cache)
    hook.remove()
    assert cache.length == 6
    cache.crop(cache.length)
    torch.testing.assert_close(logits(model, ids[:, 6:], cache), model(ids).logits[:, 6:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_planned_bytes_are_what_is_reserved(name):
    model = tiny_moe(name)
    cache = KvCache(model.config, 24)
    assert cache.nbytes == 0
    logits(model, token_ids(2), cache)
    assert cache.nbytes == kv_bytes(model.config, 24)


def test_recurrent_state_can_only_be_forgotten_whole():
    model, ids = tiny_moe("nemotron_h"), token_ids(9)
    cache = KvCache(model.config, 40)
    assert not cache.can_crop
    first = logits(model, ids, cache)
    with pytest.raises(UnsupportedModel):
        cache.crop(4)
    cache.crop(0)
    assert cache.length == 0
    torch.testing.assert_close(logits(model, ids, cache), first, rtol=1e-4, atol=1e-4)
    assert cache.nbytes > 0


def test_two_chats_at_once_are_refused():
    model = tiny_moe("mixtral")
    with pytest.raises(UnsupportedModel, match="one chat"):
        logits(model, token_ids(4).repeat(2, 1), KvCache(model.config, 10))
