"""A card that runs out of memory at load, while a prompt is read, in a step, and in growing: same answers, or words."""

from __future__ import annotations

import threading

import pytest
import torch

from engine.engine import Engine
from engine.errors import NotEnoughMemory
from engine.model import experts_on_card
from tests.engine.fake_card import card, run_out_of_memory  # noqa: F401 - a fixture
from tests.engine.oracle import assert_same_greedy
from tests.engine.stepwise import stepwise
from tests.engine.test_card import NEW_TOKENS, prompt_of, reference
from tests.tiny_models import tiny_checkpoint

LONG_PROMPT = prompt_of(300, 8)


def answers_are_stocks(engine: Engine, family: str) -> None:
    stock, prompts, answers = reference(family)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)


@pytest.fixture
def shortage(monkeypatch):
    """Call it with what to do: from then on it happens before each layer's experts are computed."""
    compute = experts_on_card._compute

    def begin(happen):
        def computing(*arguments):
            happen()
            return compute(*arguments)

        monkeypatch.setattr(experts_on_card, "_compute", computing)
        return happen

    return begin


def test_slots_that_do_not_fit_at_load_are_done_without(card):  # noqa: F811
    path = tiny_checkpoint("mixtral")
    card.card_bytes, slot_bytes = 1 << 34, 20480
    card.taken_unseen = card.card_bytes - 9 * slot_bytes
    with Engine.load(path, budget="100%") as engine:
        plan = engine.plan
        assert plan.slot_bytes == slot_bytes
        assert 6 <= plan.slots <= 9 and card.allocated_bytes == plan.near_bytes_experts
        assert "less memory than it said" in plan.warnings[-1]
        assert plan.reasons[-1].startswith(f"The cache holds {plan.slots} of 24")
        answers_are_stocks(engine, "mixtral")


def test_a_card_too_full_for_the_fewest_slots_is_refused_in_words(card):  # noqa: F811
    card.card_bytes = 1 << 34
    card.taken_unseen = card.card_bytes - 20480
    threads = threading.active_count()
    with pytest.raises(NotEnoughMemory, match="2 experts .* do not fit"):
        Engine.load(tiny_checkpoint("mixtral"), budget="50%")
    assert card.allocated_bytes == 0 and not card.locked
    assert threading.active_count() == threads


def test_dense_weights_that_do_not_fit_are_refused_in_words(card, monkeypatch):  # noqa: F811
    def full(_model, _device):
        raise torch.OutOfMemoryError("CUDA out of memory (injected).")

    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    with pytest.raises(NotEnoughMemory, match="dense weights"):
        Engine.load(tiny_checkpoint("mixtral"))


@pytest.mark.parametrize("family", ["mixtral", "nemotron_h"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_prompt_that_runs_out_of_memory_is_read_with_a_smaller_cache(family, times, card, shortage):  # noqa: F811
    stock, _, _ = reference(family)
    expected = stock.greedy(LONG_PROMPT, NEW_TOKENS)
    with Engine.load(tiny_checkpoint(family), budget="100%") as engine:
        slots = engine.plan.slots
        happened = shortage(run_out_of_memory(times, every=2))
        ours = engine.generate_ids(LONG_PROMPT, NEW_TOKENS)
        assert happened.raised == times
        assert_same_greedy(ours, expected, LONG_PROMPT, stock)
        assert engine.plan.slots < slots and card.allocated_bytes == engine.plan.near_bytes_experts
        assert "ran out of memory" in engine.snapshot().plan.warnings[-1]
        assert engine._sequences[0].length == len(LONG_PROMPT) + NEW_TOKENS - 1
        answers_are_stocks(engine, family)


def test_a_step_that_runs_out_of_memory_is_computed_again(card, shortage):  # noqa: F811
    stock, [prompt, _], [answer, _] = reference("mixtral")
    with Engine.load(tiny_checkpoint("mixtral"), budget="100%") as engine:
        happened = run_out_of_memory(2, every=5)
        answering = stepwise(engine, prompt, NEW_TOKENS)
        ids = [next(answering).token_id]
        shortage(happened)
        ids += [event.token_id for event in answering]
        assert happened.raised == 2
        assert_same_greedy(ids, answer, prompt, stock)
        assert engine.plan.slots < 24


def test_recurrent_state_lost_in_a_step_is_said_and_the_next_question_answered(card, shortage):  # noqa: F811
    stock, [prompt, _], [answer, _] = reference("nemotron_h")
    with Engine.load(tiny_checkpoint("nemotron_h"), budget="100%") as engine:
        answering = stepwise(engine, prompt, NEW_TOKENS)
        next(answering)
        shortage(run_out_of_memory(1))
        with pytest.raises(NotEnoughMemory, match="ask again"):
            list(answering)
        assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)


def test_memory_that_never_suffices_ends_the_answer_in_words_and_the_engine_goes_on(card, shortage):  # noqa: F811
    with Engine.load(tiny_checkpoint("mixtral"), budget="25%") as engine:
        happened = shortage(run_out_of_memory(10**6))
        with pytest.raises(NotEnoughMemory, match=r"injected.*\n?.*ask again"):
            engine.generate_ids(LONG_PROMPT, NEW_TOKENS)
        assert engine.plan.slots == engine.plan.minimum_slots
        assert happened.raised < 60
        shortage(lambda: None)
        answers_are_stocks(engine, "mixtral")
        assert engine.resize("100%").slots == 24


def test_growing_takes_what_there_is(card):  # noqa: F811
    with Engine.load(tiny_checkpoint("mixtral"), budget="25%") as engine:
        answers_are_stocks(engine, "mixtral")
        card.taken_unseen = card.free_bytes() - 5 * engine.plan.slot_bytes
        grown = engine.resize("100%")
        assert 6 <= grown.slots <= 11 and "less memory than it said" in grown.warnings[-1]
        assert card.allocated_bytes == grown.near_bytes_experts
        answers_are_stocks(engine, "mixtral")
        card.taken_unseen = card.free_bytes()
        assert engine.resize("100%").slots == grown.slots
        card.taken_unseen = 0
        assert engine.resize("100%").slots == 24
        answers_are_stocks(engine, "mixtral")


def test_on_the_processor_memory_is_not_given_up():
    """There the system decides; a MemoryError goes its way."""
    with Engine.load(tiny_checkpoint("mixtral"), device="cpu") as engine:
        assert engine._sequences[0]._relief is None
