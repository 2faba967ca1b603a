"""The engine's verbs: cancel, resize, follow-ups, limits, a clean end."""

from __future__ import annotations

import gc
import os
import threading

import psutil
import pytest

from engine import Engine
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import (
    BudgetTooSmall,
    ContextFull,
    DeviceNotAvailable,
    EngineClosed,
    EngineError,
    InvalidSetting,
    ModelNotFound,
)
from tests.engine.stepwise import stepwise
from tests.engine.test_exactness import prompt_of
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="module")
def engine():
    with Engine.load(tiny_checkpoint("mixtral"), budget="50%", context_length=128) as engine:
        yield engine


def test_stats_count_every_activation_once(engine):
    before = engine.stats()
    engine.generate_ids(prompt_of(9, 1), 8)
    stats = engine.stats() - before
    layers, top_k = 3, 2
    assert stats.tokens == stats.decode_steps + 1 == 8
    assert stats.activations == stats.decode_steps * layers * top_k
    assert stats.hits + stats.late + stats.misses == stats.activations
    assert stats.bytes_total >= stats.bytes_demand > 0 or stats.misses == 0
    assert stats.to_dict()["near_bytes_total"] == engine.plan.near_bytes_total


def test_bytes_on_the_link_are_the_misses_bytes():
    with Engine.load(tiny_checkpoint("mixtral"), budget="10%", link="disk:direct") as engine:
        engine.generate_ids(prompt_of(3, 1), 9)
        stats = engine.stats()
        missed = stats.misses + stats.prefill_misses + stats.late + stats.prefill_late
        expert_bytes = engine._cache._link.transfer_bytes(ExpertKey(0, 0))
        assert stats.bytes_total == missed * expert_bytes > 0
        assert stats.bytes_prefetch_wasted == 0


def test_the_plan_is_told_before_any_weight_is_read():
    told = []
    with Engine.load(
        tiny_checkpoint("mixtral"),
        budget="50%",
        on_plan=lambda plan: told.append(plan),
        on_progress=lambda *progress: told.append(progress),
    ) as engine:
        assert told[0] == engine.plan
        assert any("dense" in stage for stage, _, _ in told[1:])


def test_a_prompt_reads_of_the_last_layer_only_what_its_last_token_needs():
    with Engine.load(tiny_checkpoint("mixtral"), budget="100%") as engine:
        engine.generate_ids(prompt_of(60, 6), 1)
        resident = (engine.snapshot().residency == 2).sum(axis=1)
        assert resident[-1] == 2 and all(resident[:-1] > 2)


def test_a_follow_up_reads_only_what_is_new(engine):
    prompt = prompt_of(30, 2)
    answer = engine.generate_ids(prompt, 8)
    before = engine.stats()
    engine.generate_ids([*prompt, *answer, 9, 10], 2)
    assert (engine.stats() - before).prefill_tokens == 3  # the last answered token was never read, plus two


def test_cancel_ends_after_the_current_token(engine):
    reasons = []
    for number, event in enumerate(stepwise(engine, prompt_of(5, 3), 100)):
        reasons.append(event.finish_reason)
        if number == 2:
            engine.cancel()
    assert reasons == [None, None, None, "cancelled"]


def test_cancel_ends_a_prefill_pass_between_two_layers(engine, monkeypatch):
    prompt = prompt_of(60, 4)
    expected = engine.generate_ids(prompt, 4)
    engine.generate_ids(prompt_of(5, 5), 1)  # another chat: the prompt will have to be read again
    asked, acquire = [], engine._cache.acquire

    def cancelling(layer, experts):
        asked.append(layer)
        if layer == 1:
            engine.cancel()
        return acquire(layer, experts)

    with monkeypatch.context() as patch:
        patch.setattr(engine._cache, "acquire", cancelling)
        answer = engine.submit(prompt, 4, temperature=0.0).result()
    assert (asked, answer.ids, answer.finish_reason) == ([0, 1], [], "cancelled")
    assert engine.generate_ids(prompt, 4) == expected


def test_a_second_answer_waits_for_the_first(engine):
    first = stepwise(engine, prompt_of(5, 9), 4)
    next(first)
    second = engine.submit([5, 6], 1)
    assert second.position == 0 and not second.done
    assert engine.snapshot().running == engine.snapshot().waiting == 1
    assert len(list(first)) == 3
    assert len(second.result(60).ids) == 1 and second.position is None


def test_resize_from_another_thread_happens_between_tokens(engine):
    plans, ids = [], []
    for number, event in enumerate(stepwise(engine, prompt_of(5, 4), 40)):
        ids.append(event.token_id)
        if number == 5:
            visitor = threading.Thread(target=lambda: plans.append(engine.resize("20%")))
            visitor.start()
            visitor.join(timeout=10)
            assert not visitor.is_alive()
            assert engine.snapshot().plan is plans[0]
    assert plans[0].slots == int(0.20 * plans[0].experts_total)
    engine.resize("50%")
    assert ids == engine.generate_ids(prompt_of(5, 4), 40)


def test_the_context_is_a_limit_and_says_so(engine):
    with pytest.raises(ContextFull) as full:
        engine.generate_ids(prompt_of(129, 5), 4)
    assert (full.value.needed_tokens, full.value.context_length) == (129, 128)
    assert len(engine.generate_ids(prompt_of(126, 6), 50)) <= 3  # ends where the context ends
    assert engine.snapshot().context_used <= 128


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"budget": "lots"}, InvalidSetting, "not a memory budget"),
        ({"budget": 1000}, BudgetTooSmall, "too small"),
        ({"policy": "magic"}, InvalidSetting, "no cache policy"),
        ({"link": "pigeon"}, InvalidSetting, "no link"),
        ({"device": "tpu"}, InvalidSetting, "not a device"),
        ({"device": "cuda:77"}, DeviceNotAvailable, "cuda:77"),
        ({"device": "cpu", "link": "cuda"}, InvalidSetting, "needs a card"),
        ({"precision": "int3"}, InvalidSetting, "no precision"),
        ({"context_length": 10**9}, InvalidSetting, "not possible"),
    ],
)
def test_bad_settings_name_cause_and_remedy(arguments, error, words):
    with pytest.raises(error, match=words) as refused:
        Engine.load(tiny_checkpoint("mixtral"), **arguments)
    assert refused.value.cause and refused.value.remedy


def test_a_budget_below_the_minimum_tells_the_number_that_would_do():
    with pytest.raises(BudgetTooSmall) as refused:
        Engine.load(tiny_checkpoint("mixtral"), budget=1000)
    needed = refused.value.minimum_bytes
    with Engine.load(tiny_checkpoint("mixtral"), budget=needed) as engine:
        assert engine.plan.near_bytes_total <= needed
        assert engine.plan.slots == engine.plan.minimum_slots
        with pytest.raises(BudgetTooSmall):
            engine.resize(needed - 1)
        assert engine.generate_ids([5, 6, 7], 3)


def test_a_percentage_below_the_minimum_is_raised_with_a_warning():
    with Engine.load(tiny_checkpoint("mixtral"), budget="1%") as engine:
        assert engine.plan.slots == 2
        assert "raised to 2" in engine.plan.warnings[0]


def test_a_model_that_is_not_there():
    with pytest.raises((ModelNotFound, EngineError)) as missing:
        Engine.load("no/such-model-anywhere")
    assert missing.value.remedy


@pytest.mark.parametrize("prompt", [[], [-1], [10**6]])
def test_prompts_that_are_none(engine, prompt):
    with pytest.raises(InvalidSetting):
        engine.generate_ids(prompt, 2)


def test_closed_means_closed():
    engine = Engine.load(tiny_checkpoint("mixtral"))
    engine.close()
    engine.close()
    for call in (lambda: engine.generate_ids([5], 1), lambda: engine.resize("50%")):
        with pytest.raises(EngineClosed):
            call()


def test_sampling_repeats_with_its_seed_and_not_without(engine):
    settings = {"temperature": 1.5, "top_k": 50, "top_p": 0.98, "min_p": 0.001, "repetition_penalty": 1.1}
    prompt = prompt_of(8, 7)
    first = engine.generate_ids(prompt, 24, seed=11, **settings)
    assert first == engine.generate_ids(prompt, 24, seed=11, **settings)
    others = [engine.generate_ids(prompt, 24, seed=seed, **settings) for seed in (12, 13, 14)]
    assert any(other != first for other in others)


def test_fifty_lives_leave_nothing_behind():
    """Threads, file handles and resident memory after load-generate-close, fifty times."""
    process = psutil.Process()
    path = tiny_checkpoint("mixtral")

    def live() -> None:
        with Engine.load(path, budget="25%") as engine:
            engine.generate_ids(prompt_of(12, 8), 4)

    for _ in range(5):
        live()
    gc.collect()  # or what earlier tests left is closed in between
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    resident = process.memory_info().rss
    for _ in range(50):
        live()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    assert process.memory_info().rss - resident < 20e6
