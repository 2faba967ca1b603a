"""Many callers at once: each gets its own answer, in fair order, whoever cancels or fails beside it."""

from __future__ import annotations

import random
import threading
from functools import cache

import numpy as np
import pytest
import torch

from engine.engine import Engine
from engine.errors import ContextFull, EngineBusy, EngineClosed, InvalidSetting
from engine.model.fast_joint import FastJoint
from engine.routing.traces.trace_store import TraceStore
from engine.serving import decoding
from tests.engine.oracle import Stock, assert_same_greedy
from tests.engine.stepwise import stepwise
from tests.tiny_models import VOCAB_SIZE, tiny_checkpoint

NEW_TOKENS = 10
LENGTHS = (3, 40, 17, 1, 25, 9)


@cache
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in LENGTHS]


@cache
def stock() -> Stock:
    return Stock(tiny_checkpoint("mixtral"))


@cache
def expected(number: int) -> list[int]:
    return stock().greedy(prompts()[number], NEW_TOKENS)


def load(**settings) -> Engine:
    return Engine.load(
        tiny_checkpoint("mixtral"), **{"budget": "40%", "context_length": 128, "batch_size": 2} | settings
    )


@pytest.fixture(scope="module")
def engine():
    with load() as engine:
        yield engine


def greedy(engine, number, **settings):
    return engine.submit(prompts()[number], NEW_TOKENS, temperature=0.0, **settings)


def forget_all(engine) -> None:
    for chat in engine._sequences:
        chat.forget()


@pytest.fixture
def occupied(engine):
    """Every place is taken and its thread waits; ends all of it when called."""
    holding = stepwise(engine, [5], NEW_TOKENS)
    next(holding)
    others = [engine.submit([number + 6], NEW_TOKENS, temperature=0.0) for number in range(2)]
    next(holding), next(holding)  # and the others have begun
    assert [other.position for other in others] == [None, None]

    def let_go():
        holding.close()
        for other in others:
            other.result(60)

    yield let_go
    let_go()


def test_callers_in_many_threads_each_get_their_own_answer(engine):
    found = {}

    def ask(number):
        events = list(greedy(engine, number % len(LENGTHS), caller=str(number)))
        assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        found[number] = [event.token_id for event in events]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for number, ids in found.items():
        which = number % len(LENGTHS)
        assert_same_greedy(ids, expected(which), prompts()[which], stock())
    assert len(found) == 9 and not engine.snapshot().busy


@pytest.mark.parametrize("seed", range(3))
def test_cancelled_at_random_moments_the_others_are_as_they_were(engine, seed):
    chance = random.Random(seed)
    asked = [(n, greedy(engine, n, caller=str(n % 2))) for n in chance.sample(range(len(LENGTHS)), 6)]
    leaving = {n: chance.randrange(NEW_TOKENS) for n in chance.sample(range(len(LENGTHS)), 3)}

    def read(number, submission):
        for count, _ in enumerate(submission):
            if count == leaving.get(number):
                submission.cancel()

    readers = [threading.Thread(target=read, args=one) for one in asked]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    for number, submission in asked:
        answer = submission.result(60)
        assert answer.finish_reason in ({"cancelled", "length", "stop"} if number in leaving else {"length", "stop"})
        assert_same_greedy(answer.ids, expected(number)[: len(answer.ids)], prompts()[number], stock())
        assert number in leaving or len(answer.ids) == len(expected(number))
    assert all(chat.kv.length == chat.length for chat in engine._sequences)
    engine._cache.check()


def test_positions_are_told_and_callers_take_turns(engine, occupied):
    many = [greedy(engine, 0, caller="many") for _ in range(3)]
    one = greedy(engine, 3, caller="one")
    assert [waiting.position for waiting in (*many, one)] == [0, 2, 3, 1]
    many[0].cancel()
    assert many[0].result(1).finish_reason == "cancelled" and many[0].position is None
    assert [waiting.position for waiting in (*many[1:], one)] == [0, 2, 1]
    occupied()
    for waiting, number in ((many[1], 0), (many[2], 0), (one, 3)):
        assert_same_greedy(waiting.result(60).ids, expected(number), prompts()[number], stock())


def test_a_full_queue_refuses_in_words_and_takes_again(engine, occupied, monkeypatch):
    monkeypatch.setattr(engine._serving._queue, "bound", 2)
    waiting = [greedy(engine, 0, caller="one"), greedy(engine, 0, caller="other")]
    with pytest.raises(EngineBusy, match="2 requests are waiting") as refused:
        greedy(engine, 0, caller="third")
    assert refused.value.remedy
    waiting[0].cancel()
    last = greedy(engine, 3)
    occupied()
    assert last.result(60).finish_reason in {"length", "stop"}


def test_who_submits_hundreds_leaves_the_queue_to_others(engine, occupied):
    waiting = []
    with pytest.raises(EngineBusy, match="32 requests of the same caller") as refused:
        for _ in range(300):
            waiting.append(engine.submit([5], 1, temperature=0.0, caller="many"))
    assert refused.value.remedy and len(waiting) == 32
    other = greedy(engine, 3, caller="other")
    assert other.position == 1
    occupied()
    assert_same_greedy(other.result(60).ids, expected(3), prompts()[3], stock())
    assert {one.result(60).finish_reason for one in waiting} <= {"length", "stop"}


def test_what_cannot_be_answered_is_refused_at_once(engine):
    for prompt, error in (([], InvalidSetting), ([5] * 129, ContextFull), ([10**6], InvalidSetting)):
        with pytest.raises(error):
            engine.submit(prompt)
    with pytest.raises(InvalidSetting):
        engine.submit([5], temperature=-1.0)


def test_a_reader_that_does_not_read_holds_up_nobody(engine):
    unread = greedy(engine, 1)
    assert_same_greedy(greedy(engine, 2).result(60).ids, expected(2), prompts()[2], stock())
    unread.result(60)
    assert_same_greedy([event.token_id for event in unread], expected(1), prompts()[1], stock())


def test_a_failure_is_told_to_its_own_request_only(engine, monkeypatch):
    asked = [greedy(engine, number) for number in (0, 1)]
    bad = engine._request(prompts()[2], NEW_TOKENS, asked[0]._request._sampler._settings)
    bad._sampler.choose = lambda logits, ids: (_ for _ in ()).throw(ValueError("odd"))
    failing = engine._serving.submit(bad, caller="bad")
    with pytest.raises(ValueError, match="odd"):
        list(failing)
    with pytest.raises(ValueError, match="odd"):
        failing.result(60)
    for number, submission in enumerate(asked):
        assert_same_greedy(submission.result(60).ids, expected(number), prompts()[number], stock())


def test_a_joint_pass_that_fails_is_done_apart(engine, monkeypatch):
    failed = []

    def broken(step, chats, tokens):
        failed.append(len(chats))
        raise RuntimeError("no joint pass today")

    monkeypatch.setattr(FastJoint, "__call__", broken)
    monkeypatch.setattr(type(engine._reading.choice), "joint", lambda self, chats: True)
    asked = [greedy(engine, number) for number in range(3)]
    for number, submission in enumerate(asked):
        assert_same_greedy(submission.result(60).ids, expected(number), prompts()[number], stock())
    assert failed


def test_a_long_prompt_is_read_between_the_tokens_of_others(engine, monkeypatch):
    monkeypatch.setattr(decoding, "FEWEST_SHARED_ROWS", 4)
    monkeypatch.setattr(decoding, "SHARED_PART", 10**6)
    forget_all(engine)
    done, reading, token = [], engine._activity.prefill, engine._activity.token
    monkeypatch.setattr(engine._activity, "prefill", lambda tokens: done.append(tokens) or reading(tokens))
    monkeypatch.setattr(engine._activity, "token", lambda first: done.append("token") or token(first))
    first = stepwise(engine, prompts()[0], NEW_TOKENS)
    next(first)
    long = greedy(engine, 1)
    assert len(list(first)) == NEW_TOKENS - 1
    assert_same_greedy(long.result(60).ids, expected(1), prompts()[1], stock())
    assert done[: 4 + 2 * 8] == [3, "token", "token", *[4, "token"] * 8, 8]
    assert sum(tokens for tokens in done if tokens != "token") == 3 + len(prompts()[1])


def test_a_follow_up_finds_its_own_past_although_others_were_answered_in_between(engine):
    chats = [greedy(engine, number).result(60).ids for number in (1, 2)]
    for number, ids in zip((1, 2), chats, strict=True):
        before = engine.stats()
        follow_up = [*prompts()[number], *ids, 9, 10]
        assert_same_greedy(engine.generate_ids(follow_up, 3), stock().greedy(follow_up, 3), follow_up, stock())
        assert (engine.stats() - before).prefill_tokens == 3


def test_each_chat_is_recorded_as_a_conversation_of_its_own(engine, monkeypatch):
    monkeypatch.setattr(type(engine._reading.choice), "joint", lambda self, chats: True)
    forget_all(engine)
    engine.record_routing(True)
    try:
        asked = [greedy(engine, number) for number in range(3)]
        read = {(*prompts()[n], *one.result(60).ids[:-1]) for n, one in enumerate(asked)}
        together = {tuple(trace.token_ids.tolist()): trace for trace in engine.take_routing()}
        assert set(together) == read
        forget_all(engine)
        for number in range(3):
            greedy(engine, number).result(60)
        alone = {tuple(trace.token_ids.tolist()): trace for trace in engine.take_routing()}
    finally:
        engine.record_routing(False)
    assert all((together[ids].experts == alone[ids].experts).all() for ids in read)


def test_a_file_of_recorded_routing_keeps_chats_apart_that_were_answered_together(engine, monkeypatch, tmp_path):
    found = []
    for joint in (True, False):
        monkeypatch.setattr(type(engine._reading.choice), "joint", lambda self, chats, joint=joint: joint)
        forget_all(engine)
        with TraceStore(tmp_path / f"{joint}.sqlite", engine.traced_model) as store:
            engine.record_to(store, ahead=1, hidden=True)
            for asked in [greedy(engine, number, caller=str(number)) for number in range(5)]:
                asked.result(60)
            engine.record_to(None)
            traces = list(store.traces())
        found.append({tuple(trace.token_ids.tolist()): trace for trace in traces})
        assert len(traces) == len({trace.conversation for trace in traces}) == 5
    together, alone = found
    assert together.keys() == alone.keys()
    for ids, trace in together.items():
        other = alone[ids]
        assert (trace.experts == other.experts).all() and (trace.decoded == other.decoded).all()
        for name in ("ahead", "hidden", "midway"):
            one, two = getattr(trace, name), getattr(other, name)
            np.testing.assert_allclose(one.astype(np.float32), two.astype(np.float32), rtol=0.02, atol=0.02)


def test_the_predictors_history_is_that_of_the_chat_that_decodes_alone():
    """A predictor each: what others did beside a chat, or in between, is not in its history."""
    with load(policy="predictive", budget="30%") as engine:
        told = {}
        for number, chat in enumerate(engine._sequences):
            predictor = chat._feed._predictor
            predictor.begin = lambda number=number: told.__setitem__(number, [])
            predictor.read = lambda rows, number=number: told[number].extend(rows.token_ids.tolist())
            predicting = predictor.predict
            predictor.predict = lambda token, number=number, ask=predicting: told[number].append(token) or ask(token)
            predictor.begin()
        asked = [greedy(engine, number) for number in range(3)]
        answers = [submission.result(60).ids for submission in asked]
        histories = {}
        for number in range(3):  # each goes on alone
            follow_up = [*prompts()[number], *answers[number], 9]
            ids = engine.generate_ids(follow_up, 3)
            histories[number] = [*follow_up, *ids[:-1]]
        assert sorted(told.values()) == sorted(histories.values())


def test_closing_ends_what_runs_and_refuses_what_waits():
    engine = load(batch_size=0)
    first = stepwise(engine, prompts()[0], NEW_TOKENS)
    next(first)
    waiting = greedy(engine, 1)
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(EngineClosed):
        waiting.result(60)
    assert [event.finish_reason for event in first][-1] == "cancelled"
    closing.join(60)
    assert not closing.is_alive() and engine._serving._thread is not None and not engine._serving._thread.is_alive()
    with pytest.raises(EngineClosed):
        greedy(engine, 1)
