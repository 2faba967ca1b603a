"""Whatever the budget, policy and link: what stock transformers says, token for token."""

from __future__ import annotations

import time
from functools import cache
from itertools import count

import pytest
import torch

from engine.cache.host_compute import HostCompute
from engine.cache.link import Priority
from engine.cache.links.disk import DiskLink
from engine.engine import Engine
from tests.engine.oracle import Stock, assert_same_greedy, assert_same_logits
from tests.engine.stepwise import stepwise
from tests.tiny_models import VOCAB_SIZE, tiny_checkpoint

FAMILIES = (
    "mixtral",
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "phimoe",
    "glm4_moe",
    "ernie4_5_moe",
    "granitemoe",
    "granitemoeshared",
    "lfm2_moe",
    "nemotron_h",
    "qwen3_5_moe_text",
    "gpt_oss",
    "dots1",
    "jamba",
)
SETTINGS = (  # every policy, link and budget class at least once
    {"budget": "1%", "policy": "lru", "link": "disk"},
    {"budget": "5%", "policy": "lru-per-layer", "link": "disk:direct"},
    {"budget": "25%", "policy": "lfu", "link": "emulated:1GBps+50us"},
    {"budget": "25%", "policy": "lru", "link": "disk:direct"},
    {"budget": "25%", "policy": "predictive", "link": "disk:direct"},
    {"budget": "1%", "policy": "predictive", "link": "emulated:1GBps+50us"},
    {"budget": "100%", "policy": "lru", "link": "disk"},
    {},
)
NEW_TOKENS = 16


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist()


@cache
def reference(family: str, dtype: torch.dtype) -> tuple[Stock, list[list[int]], list[list[int]]]:
    stock = Stock(tiny_checkpoint(family, dtype))
    prompts = [prompt_of(37, 1), prompt_of(5, 2)]
    return stock, prompts, [stock.greedy(prompt, NEW_TOKENS) for prompt in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_and_logits_are_stocks(family):
    stock, prompts, answers = reference(family, torch.float32)
    for settings in SETTINGS:
        with Engine.load(tiny_checkpoint(family), **settings) as engine:
            for prompt, answer in zip(prompts, answers, strict=True):
                assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)
            assert_same_logits(engine.logits(prompts[0]), stock.logits(prompts[0]))


@pytest.mark.parametrize("policy", ("lru-per-layer", "predictive"))
@pytest.mark.parametrize("family", ("qwen3_moe", "gpt_oss"))
def test_misses_that_the_processor_computes_where_they_are_change_nothing(family, policy, monkeypatch):
    monkeypatch.setattr(HostCompute, "share", lambda self, misses: (misses + 1) // 2)  # whatever takes how long
    stock, prompts, answers = reference(family, torch.float32)
    with Engine.load(
        tiny_checkpoint(family), budget="25%", policy=policy, link="emulated:0.1GBps/host:1GBps"
    ) as engine:
        for prompt, answer in zip(prompts, answers, strict=True):
            assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)
        assert 0 < engine.stats().computed_far < engine.stats().misses


@pytest.mark.parametrize("family", ("mixtral", "qwen3_moe", "deepseek_v3", "granitemoe", "gpt_oss"))
def test_bfloat16_checkpoints_compute_in_float32(family):
    stock, prompts, answers = reference(family, torch.bfloat16)
    with Engine.load(tiny_checkpoint(family, torch.bfloat16), budget="25%") as engine:
        for prompt, answer in zip(prompts, answers, strict=True):
            assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)
            assert_same_logits(engine.logits(prompt), stock.logits(prompt))


@pytest.mark.parametrize("family", ("mixtral", "qwen3_moe", "nemotron_h"))
@pytest.mark.parametrize("link", ("disk:direct", "emulated:2GBps"))
@pytest.mark.parametrize("policy", ("auto", "predictive"))
def test_a_resize_in_mid_answer_changes_nothing(family, link, policy):
    stock, prompts, answers = reference(family, torch.float32)
    with Engine.load(tiny_checkpoint(family), budget="100%", link=link, policy=policy) as engine:
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = []
            for number, event in enumerate(stepwise(engine, prompt, NEW_TOKENS)):
                ids.append(event.token_id)
                plan = engine.resize(("5%", "60%", "15%", "100%")[number % 4])
                assert engine.snapshot().plan == plan
            assert_same_greedy(ids, answer, prompt, stock)


@pytest.mark.parametrize("family", ("mixtral", "qwen2_moe", "gpt_oss"))
def test_prefetches_that_fail_or_dawdle_change_nothing(family, monkeypatch):
    stock, prompts, answers = reference(family, torch.float32)
    guesses, failed = count(), []

    def copy(link, transfer, start, stop, read=DiskLink.copy):
        read(link, transfer, start, stop)
        if transfer.origin is Priority.PREFETCH:
            time.sleep(0.0005)
            if next(guesses) % 3 == 0:
                failed.append(transfer.key)
                raise OSError("injected read error")

    monkeypatch.setattr(DiskLink, "copy", copy)
    with Engine.load(tiny_checkpoint(family), budget="25%", link="disk", policy="predictive") as engine:
        for prompt, answer in zip(prompts, answers, strict=True):
            assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)
    assert failed


def test_a_long_prompt_read_in_passes_equals_one_pass(monkeypatch):
    stock, _, _ = reference("mixtral", torch.float32)
    prompt = prompt_of(90, 3)
    with Engine.load(tiny_checkpoint("mixtral"), budget="15%") as engine:
        engine._sequences[0]._rows = 32
        assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), stock.greedy(prompt, NEW_TOKENS), prompt, stock)


@pytest.mark.parametrize("family", ("mixtral", "gpt_oss", "nemotron_h", "qwen3_5_moe_text"))
def test_a_follow_up_equals_a_fresh_start(family):
    """KV kept between turns (or read again where state is recurrent) gives the answer of a fresh engine."""
    stock, prompts, answers = reference(family, torch.float32)
    with Engine.load(tiny_checkpoint(family), budget="50%") as engine:
        first = engine.generate_ids(prompts[0], NEW_TOKENS)
        assert_same_greedy(first, answers[0], prompts[0], stock)
        follow_up = [*prompts[0], *first, *prompt_of(6, 4)]
        again = engine.generate_ids(follow_up, NEW_TOKENS)
        assert_same_greedy(again, stock.greedy(follow_up, NEW_TOKENS), follow_up, stock)
        edited = [*prompts[0][:20], *prompt_of(9, 5)]
        assert_same_greedy(engine.generate_ids(edited, NEW_TOKENS), stock.greedy(edited, NEW_TOKENS), edited, stock)


def test_the_built_in_model_at_every_budget(builtin_model):
    stock = Stock(builtin_model)
    with Engine.load(builtin_model, budget="5%", link="disk:direct") as engine:
        prompt = engine.tokenizer("The three laws of motion say that", add_special_tokens=False)["input_ids"]
        answer = stock.greedy(prompt, 12)
        logits = stock.logits(prompt)
        del stock._model
        for budget in ("1%", "5%", "25%", "100%"):
            engine.resize(budget)
            assert engine.generate_ids(prompt, 12) == answer
            assert_same_logits(engine.logits(prompt), logits)
    with Engine.load(builtin_model, budget="25%", policy="predictive", link="emulated:2.5GBps") as engine:
        assert engine.generate_ids(prompt, 12) == answer
        foresight = engine.snapshot().foresight
    assert foresight is not None and "a predictor trained for this model" in foresight.source
