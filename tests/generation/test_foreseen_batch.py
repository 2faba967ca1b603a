"""Joint passes that are foreseen give each chat's own answer, whatever a guess does."""

from __future__ import annotations

import time
from itertools import count

import pytest

from engine.cache.link import Priority
from engine.cache.links.disk import DiskLink
from engine.engine import Engine
from engine.generation.joint_choice import JointChoice
from tests.engine.oracle import Stock, assert_same_greedy
from tests.generation.test_batch import NEW_TOKENS, in_order, prompts
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(autouse=True)
def always_together(monkeypatch):
    monkeypatch.setattr(JointChoice, "joint", lambda self, chats: True)


@pytest.mark.parametrize(("family", "budget", "link"), [("qwen3_moe", "10%", "emulated:1GBps+50us")])
def test_greedy_ids_are_those_of_each_prompt_alone(family, budget, link):
    path = tiny_checkpoint(family)
    stock = Stock(path)
    with Engine.load(path, budget=budget, link=link, policy="predictive", batch_size=4) as engine:
        answers = in_order(engine.generate_batch(prompts(), NEW_TOKENS))
        for prompt, ids in zip(prompts(), answers, strict=True):
            assert_same_greedy(ids, stock.greedy(prompt, NEW_TOKENS), prompt, stock)
        engine._cache.check()
        assert engine.stats().bytes_prefetch_used > 0
        alone = engine.generate_ids(prompts()[1], NEW_TOKENS)
        assert_same_greedy(alone, stock.greedy(prompts()[1], NEW_TOKENS), prompts()[1], stock)


@pytest.mark.parametrize("family", ["mixtral"])
def test_guesses_that_fail_or_dawdle_change_nothing(family, monkeypatch):
    path = tiny_checkpoint(family)
    stock, guesses, failed = Stock(path), count(), []

    def copy(link, transfer, start, stop, read=DiskLink.copy):
        read(link, transfer, start, stop)
        if transfer.origin is not Priority.DEMAND:
            time.sleep(0.0005)
            if next(guesses) % 3 == 0:
                failed.append(transfer.key)
                raise OSError("injected read error")

    monkeypatch.setattr(DiskLink, "copy", copy)
    with Engine.load(path, budget="25%", link="disk", policy="predictive", batch_size=4) as engine:
        answers = in_order(engine.generate_batch(prompts(), NEW_TOKENS))
        for prompt, ids in zip(prompts(), answers, strict=True):
            assert_same_greedy(ids, stock.greedy(prompt, NEW_TOKENS), prompt, stock)
        engine._cache.check()
    assert failed
