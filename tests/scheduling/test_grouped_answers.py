"""However chats are grouped, each one's greedy ids are its ids alone."""

from __future__ import annotations

import pytest
import torch

from engine.engine import Engine
from engine.generation.joint_choice import JointChoice
from engine.scheduling.groupings import CACHE_AWARE, OFF, PAPER, SCHEDULER_NAMES, WAVES
from engine.scheduling.token_scheduler import SchedulerSettings
from tests.tiny_models import VOCAB_SIZE, tiny_checkpoint

NEW_TOKENS = 10


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (3, 20, 7, 1, 12, 9)]


def answers(engine: Engine) -> list[list[int]]:
    by_number = {answer.number: answer.ids for answer in engine.generate_batch(prompts(), NEW_TOKENS)}
    return [by_number[number] for number in range(len(by_number))]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("family", "budget"), [("mixtral", "30%"), ("qwen3_moe", "50%")])
def test_greedy_ids_do_not_depend_on_the_grouping(monkeypatch, family, budget, together):
    monkeypatch.setattr(JointChoice, "joint", lambda self, chats: together)
    with Engine.load(tiny_checkpoint(family), budget=budget, policy="lru", batch_size=5) as engine:
        alone = [engine.generate_ids(prompt, NEW_TOKENS) for prompt in prompts()]
        for name in SCHEDULER_NAMES:
            for group_size in (None, 2):
                before = engine.scheduler_stats()
                engine.schedule(SchedulerSettings(name, group_size))
                assert answers(engine) == alone, (name, group_size)
                spent = engine.scheduler_stats() - before
                assert spent.tokens == sum(len(ids) - 1 for ids in alone)
                assert 0 < spent.scheduling_seconds < spent.seconds
                assert spent.worst_wait_passes <= 8
        engine._cache.check()


def test_groups_are_no_larger_than_asked_and_follow_what_was_used():
    with Engine.load(tiny_checkpoint("mixtral"), budget="30%", policy="lru", batch_size=5) as engine:
        passes = {}
        for name, group_size in ((OFF, None), (WAVES, 2), (OFF, 2), (PAPER, 2), (CACHE_AWARE, 2)):
            before = engine.scheduler_stats()
            engine.schedule(SchedulerSettings(name, group_size))
            answers(engine)
            spent = engine.scheduler_stats() - before
            passes[name, group_size] = spent.passes
            assert spent.passes_by_name == {name: spent.passes}
            assert spent.tokens <= spent.passes * (group_size if group_size and name != WAVES else 6)
        assert passes[OFF, None] < passes[OFF, 2]
        assert engine._scheduler._forecast._weight.any()  # real routing reached it, pass by pass
