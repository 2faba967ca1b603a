"""Several answers at once are those of each prompt alone, whoever joins and leaves beside them."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from engine.cache.links.disk import DiskLink
from engine.engine import Engine
from engine.errors import ContextFull, InvalidSetting, TransferFailed
from engine.generation.joint_choice import JointChoice
from engine.model.fast_joint import FastJoint
from tests.engine.oracle import Stock, assert_same_greedy
from tests.tiny_models import VOCAB_SIZE, tiny_checkpoint

LENGTHS = (3, 40, 17, 1, 25, 9, 2)
NEW_TOKENS = 12


@cache
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in LENGTHS]


def in_order(answers) -> list[list[int]]:
    by_number = {answer.number: answer.ids for answer in answers}
    return [by_number[number] for number in range(len(by_number))]


@pytest.fixture(autouse=True)
def both_ways(monkeypatch):
    """Two chats are read one after another, any other number together, whatever takes how long."""
    monkeypatch.setattr(JointChoice, "joint", lambda self, chats: chats != 2)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mixtral", {"budget": "25%", "policy": "lru"}),
        ("mixtral", {"budget": "1%", "link": "emulated:1GBps"}),
        ("qwen3_moe", {"budget": "25%", "policy": "predictive"}),
        ("gpt_oss", {"budget": "50%"}),
        ("deepseek_v3", {"budget": "25%"}),  # whose cache holds latent keys
        ("jamba", {"budget": "25%"}),  # whose chats cannot share a pass: they have recurrent state
    ],
)
def test_greedy_ids_are_those_of_each_prompt_alone(family, settings):
    path = tiny_checkpoint(family)
    stock = Stock(path)
    with Engine.load(path, batch_size=3, **settings) as engine:
        answers = list(engine.generate_batch(iter(prompts()), NEW_TOKENS))
        for prompt, ids in zip(prompts(), in_order(answers), strict=True):
            assert_same_greedy(ids, stock.greedy(prompt, NEW_TOKENS), prompt, stock)
        assert {answer.reason for answer in answers} <= {"stop", "length"}
        engine._cache.check()
        alone = engine.generate_ids(prompts()[1], NEW_TOKENS)  # the one chat beside them is as it was
        assert_same_greedy(alone, stock.greedy(prompts()[1], NEW_TOKENS), prompts()[1], stock)


def test_a_step_computes_each_expert_once_for_all_chats():
    path = tiny_checkpoint("mixtral")
    with Engine.load(path, budget="100%", policy="lru", batch_size=7) as engine:
        list(engine.generate_batch(prompts(), NEW_TOKENS))
        together = engine.stats()
    with Engine.load(path, budget="100%", policy="lru") as engine:
        for prompt in prompts():
            engine.generate_ids(prompt, NEW_TOKENS)
        alone = engine.stats()
    assert together.tokens == alone.tokens and together.decode_steps == alone.decode_steps
    assert together.activations < 0.6 * alone.activations


def test_what_is_sampled_depends_on_the_seed_and_the_prompts_number_alone():
    path = tiny_checkpoint("mixtral")
    found = []
    for size in (2, 5):
        with Engine.load(path, budget="50%", batch_size=size) as engine:
            found.append(in_order(engine.generate_batch(prompts(), NEW_TOKENS, temperature=1.0, seed=3)))
    assert found[0] == found[1]
    assert len({tuple(ids) for ids in found[0]}) == len(LENGTHS)


def test_prompts_are_taken_as_places_become_free():
    taken = []

    def lazily():
        for prompt in prompts():
            taken.append(prompt)
            yield prompt

    with Engine.load(tiny_checkpoint("mixtral"), budget="100%", batch_size=2) as engine:
        answers = engine.generate_batch(lazily(), NEW_TOKENS)
        next(answers)
        assert len(taken) == 2
        assert len(engine.generate_ids([5], 1)) == 1  # in the place beside the batch
        answers.close()
        assert len(taken) == 2
        assert len(engine.generate_ids(prompts()[0], 3)) == 3


def test_cancel_ends_it_with_what_is_whole():
    with Engine.load(tiny_checkpoint("mixtral"), budget="100%", batch_size=2) as engine:
        found = []
        for answer in engine.generate_batch(prompts(), 10 * NEW_TOKENS):
            found.append(answer)
            engine.cancel()
        assert 1 <= len(found) < len(LENGTHS)  # some may have ended before it was said
        assert len(list(engine.generate_batch(prompts(), 2))) == len(LENGTHS)


@pytest.mark.parametrize("failures", [1, 10**6])
def test_a_transfer_that_fails_leaves_chats_as_they_were(monkeypatch, failures):
    """Once: the chats are read apart then, and nobody notices. For good: the batch says so."""
    path = tiny_checkpoint("mixtral")
    with Engine.load(path, budget="20%", policy="lru", batch_size=3) as engine:
        expected = in_order(engine.generate_batch(prompts(), NEW_TOKENS))
        copy, calls = DiskLink.copy, []

        def failing(link, transfer, start, stop):
            calls.append(transfer.key)
            if 150 <= len(calls) < 150 + failures:
                raise OSError("read error")
            copy(link, transfer, start, stop)

        with monkeypatch.context() as patch:
            patch.setattr(DiskLink, "copy", failing)
            if failures == 1:
                assert in_order(engine.generate_batch(prompts(), NEW_TOKENS)) == expected
            else:
                with pytest.raises(TransferFailed):
                    list(engine.generate_batch(prompts(), NEW_TOKENS))
        assert len(calls) > 150
        assert all(chat.kv.length == chat.length for chat in engine._sequences)
        assert in_order(engine.generate_batch(prompts(), NEW_TOKENS)) == expected


def test_room_for_each_chat_is_planned():
    path = tiny_checkpoint("mixtral")
    with Engine.load(path, budget="50%") as one, Engine.load(path, budget="50%", batch_size=4) as five:
        assert five.plan.near_bytes_kv == 5 * one.plan.near_bytes_kv
        with pytest.raises(InvalidSetting, match="batch_size"):
            next(one.generate_batch(prompts()))
    with pytest.raises(InvalidSetting, match="0 .* or more"):
        Engine.load(path, batch_size=-1)


def test_memory_that_runs_out_in_a_joint_pass_has_the_chats_take_turns(monkeypatch):
    path = tiny_checkpoint("mixtral")
    with Engine.load(path, budget="50%", policy="lru", batch_size=3) as engine:
        expected = in_order(engine.generate_batch(prompts(), NEW_TOKENS))
        joint, passes = FastJoint.__call__, []

        def short_of_memory(step, chats, tokens):
            passes.append(len(chats))
            logits = joint(step, chats, tokens)
            if len(passes) % 3 == 0:
                raise torch.OutOfMemoryError("CUDA out of memory (injected).")
            return logits

        monkeypatch.setattr(FastJoint, "__call__", short_of_memory)
        assert in_order(engine.generate_batch(prompts(), NEW_TOKENS)) == expected
        assert len(passes) > 3


def test_a_prompt_that_does_not_fit_is_told():
    with Engine.load(tiny_checkpoint("mixtral"), budget="50%", batch_size=2, context_length=20) as engine:
        with pytest.raises(ContextFull):
            list(engine.generate_batch([[5, 6], [7] * 30]))
        [answer] = engine.generate_batch([[7] * 19], 50)
        assert answer.reason == "length" and len(answer.ids) == 2
