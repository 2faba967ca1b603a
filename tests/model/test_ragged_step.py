"""Several chats in one pass: each says what it says alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from engine.engine import Engine
from engine.errors import ContextFull
from engine.model.kv_cache import KvCache
from engine.model.ragged_step import FAMILIES, RaggedStep, supports
from tests.engine.oracle import Stock, assert_same_logits
from tests.tiny_models import VOCAB_SIZE, tiny_checkpoint

LENGTHS = (3, 40, 17, 1)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in LENGTHS]


def read(engine: Engine, prompt: list[int]) -> KvCache:
    """A chat of its own that has read `prompt`."""
    kv = KvCache(engine._model.config, 64)
    engine._cache.begin_prefill(len(prompt), engine._top_k)
    with torch.inference_mode():
        engine._model(input_ids=torch.tensor([prompt]), past_key_values=kv, use_cache=True, logits_to_keep=1)
    engine._cache.begin_decode()
    return kv


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_chat_says_what_it_says_alone(family):
    path = tiny_checkpoint(family)
    stock = Stock(path)
    with Engine.load(path, budget="30%", policy="lru") as engine:
        texts = prompts()
        chats = [read(engine, prompt) for prompt in texts]
        assert supports(engine._model, chats[0]) is None
        step = RaggedStep(engine._model)
        for token in (9, 77, 30):
            together = [0, 2, 3, 1] if token == 77 else [0, 1, 2, 3]  # any order, any company
            together = together[:3] if token == 30 else together
            logits = step([chats[n] for n in together], [token + n for n in together])
            for row, n in enumerate(together):
                texts[n].append(token + n)
                assert_same_logits(logits[row], stock.logits(texts[n]))
        assert [chat.length for chat in chats] == [len(text) for text in texts]
        assert engine._model.config.get_text_config()._attn_implementation != "expertflow_ragged"


def test_a_sliding_window_hides_the_same_positions(tmp_path):
    path = shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "sliding")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"sliding_window": 8}))
    stock = Stock(path)
    with Engine.load(path, budget="100%", policy="lru") as engine:
        texts = prompts()
        logits = RaggedStep(engine._model)([read(engine, prompt) for prompt in texts], [11] * 4)
        for row, text in enumerate(texts):
            assert_same_logits(logits[row], stock.logits([*text, 11]))


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("mixtral", {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0}),
        ("phimoe", {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
                    "short_mscale": 1.1, "long_mscale": 1.4}),
    ],
)  # fmt: skip
def test_a_long_chat_does_not_change_how_a_short_one_is_embedded(tmp_path, family, rope):
    path = shutil.copytree(tiny_checkpoint(family), tmp_path / "long")
    config = json.loads((path / "config.json").read_text())
    rope = rope | {"rope_theta": 10000.0, "original_max_position_embeddings": 16}
    (path / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    stock = Stock(path)
    with Engine.load(path, budget="100%", policy="lru") as engine:
        texts = prompts()
        logits = RaggedStep(engine._model)([read(engine, prompt) for prompt in texts], [11] * 4)
        for row, text in enumerate(texts):
            assert_same_logits(logits[row], stock.logits([*text, 11]))


def test_a_full_chat_is_told_before_anything_is_computed():
    with Engine.load(tiny_checkpoint("mixtral"), budget="100%", policy="lru") as engine:
        full, short = KvCache(engine._model.config, 3), KvCache(engine._model.config, 64)
        engine._model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=full, use_cache=True)
        with pytest.raises(ContextFull):
            RaggedStep(engine._model)([short, full], [8, 8])
        assert short.length == 0 and full.length == 3


def test_families_that_are_not_known_say_so():
    with Engine.load(tiny_checkpoint("jamba"), budget="50%", policy="lru") as engine:
        kv = KvCache(engine._model.config, 64)
        assert "not known" in supports(engine._model, kv)
