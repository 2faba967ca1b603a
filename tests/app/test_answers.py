"""Answers are written whatever the browser does: saved while they grow, stopped, refused, failed in words."""

import threading
import time

import pytest

from app.answers import Answers
from app.chats import ChatStore
from app.engine_host import EngineHost
from app.settings import Sampling
from app.ui.chat_view import _facts, live_words
from engine.errors import BudgetTooSmall, EngineBusy, TransferFailed
from tests.app.fake_engine import FakeEngine


class Stage:
    """A store, an engine that may be slow to come, and answers."""

    def __init__(self, engine, path=None):
        self.engine = engine
        self.release = threading.Event()
        self.host = EngineHost({}, self._load)
        self.store = ChatStore(path)
        self.answers = Answers(self.host, self.store)
        self.host.start()

    def _load(self, on_progress, **options):
        on_progress("Reading dense weights", 1, 4)
        self.release.wait(10)
        if isinstance(self.engine, Exception):
            raise self.engine
        return self.engine

    def ask(self, words="hi", sampling=None, **options):
        chat_id = self.store.create_chat()
        self.store.add_user_message(chat_id, words)
        self.answers.start(chat_id, sampling or Sampling(), **options)
        return chat_id

    def finish(self):
        for live in self.answers.in_progress:
            self.answers.wait(live.chat_id)
        assert self.answers.in_progress == []


@pytest.fixture
def stage(request):
    made = []

    def make(engine, ready=True):
        stage = Stage(engine)
        made.append(stage)
        if ready:
            stage.release.set()
        return stage

    yield make
    for stage in made:
        stage.release.set()
        stage.answers.close()
        stage.host.close()
        stage.store.close()


def test_an_answer_is_saved_with_its_ids_reason_and_figures(stage):
    s = stage(FakeEngine())
    chat_id = s.ask(sampling=Sampling(temperature=0.1, seed=3, stop=["x"], system_prompt="Be brief."))
    s.finish()
    answer = s.store.messages(chat_id)[-1]
    assert (answer.content, answer.token_ids, answer.finish_reason) == ("one two three", (0, 1, 2), "stop")
    assert answer.stats["tokens"] == 3
    assert 0 <= answer.stats["hit_rate"] <= 1
    assert s.engine.prompts[0][0] == {"role": "system", "content": "Be brief."}
    assert s.engine.arguments["seed"] == 3
    assert s.engine.arguments["stop"] == ("x",)


def test_the_caches_figures_are_its_own_only_where_nobody_was_answered_beside_it(stage):
    s = stage(FakeEngine(words=["word "] * 40, token_seconds=0.01))
    first, second = s.ask(), s.ask()
    s.finish()
    alone = s.ask()
    s.finish()
    beside = [s.store.messages(chat_id)[-1] for chat_id in (first, second)]
    assert all(0 < answer.stats["others_tokens"] <= 40 for answer in beside)
    assert "and others answered meanwhile" in _facts(beside[0])
    answer = s.store.messages(alone)[-1]
    assert answer.stats["others_tokens"] == 0
    assert _facts(answer).endswith("% of experts were ready</p>")


def test_a_follow_up_sends_the_generated_ids_back(stage):
    s = stage(FakeEngine())
    chat_id = s.ask()
    s.finish()
    s.store.add_user_message(chat_id, "more")
    s.answers.start(chat_id, Sampling())
    s.finish()
    assert s.engine.prompts[1][1] == {"role": "assistant", "content": "one two three", "token_ids": [0, 1, 2]}


def test_a_message_written_while_loading_is_answered_when_the_model_is_there(stage):
    s = stage(FakeEngine(), ready=False)
    chat_id = s.ask()
    assert s.answers.live(chat_id) is not None
    s.release.set()
    s.finish()
    assert s.store.messages(chat_id)[-1].content == "one two three"


def test_stopping_keeps_what_there_is(stage):
    s = stage(FakeEngine(words=["word "] * 10_000, token_seconds=0.005))
    chat_id = s.ask()
    while not s.answers.live(chat_id).text:
        threading.Event().wait(0.01)
    s.answers.stop(chat_id)
    s.finish()
    answer = s.store.messages(chat_id)[-1]
    assert answer.finish_reason == "cancelled"
    assert answer.content.startswith("word ")
    assert len(answer.token_ids) == answer.content.count("word")


def test_an_answer_is_in_the_store_while_it_grows(stage):
    s = stage(FakeEngine(words=["word "] * 10_000, token_seconds=0.005))
    chat_id = s.ask()
    while not s.store.messages(chat_id)[-1].content:
        assert s.answers.live(chat_id) is not None
        threading.Event().wait(0.05)
    assert s.store.messages(chat_id)[-1].finish_reason == "writing"


def endless(**settings) -> FakeEngine:
    return FakeEngine(words=["word "] * 10_000, token_seconds=0.002, **settings)


def until(holds):
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_second_question_in_the_same_chat_meanwhile_is_refused_in_words_and_leaves_no_trace(stage):
    s = stage(endless())
    chat_id = s.ask()
    with pytest.raises(EngineBusy, match="still being written"):
        s.answers.start(chat_id, Sampling())
    with pytest.raises(EngineBusy, match="being written in “hi”"):
        s.answers.check_idle()
    assert len(s.store.messages(chat_id)) == 2


def test_several_chats_are_answered_at_once_and_each_is_stopped_alone(stage):
    s = stage(endless())
    first, second = s.ask("one"), s.ask("two")
    until(lambda: s.answers.live(first).text and s.answers.live(second).text)
    s.answers.stop(first)
    s.answers.wait(first)
    assert s.answers.live(first) is None and s.answers.live(second) is not None
    assert s.store.messages(first)[-1].finish_reason == "cancelled"
    written = len(s.answers.live(second).text)
    until(lambda: len(s.answers.live(second).text) > written)


def test_a_chat_that_waits_says_how_many_are_before_it_and_can_be_stopped(stage):
    s = stage(endless())
    s.engine.places = 1
    writing = s.ask("first")
    until(lambda: s.answers.live(writing).text)
    waiting = []
    for _ in range(3):
        waiting.append(s.ask("me too"))
        until(lambda: s.answers.live(waiting[-1]).submission)
    words = [live_words(s.answers.live(chat_id), s.host) for chat_id in waiting]
    assert words == ["*Waiting: it is next …*", "*Waiting: 1 before it …*", "*Waiting: 2 before it …*"]
    s.answers.stop(waiting[0])
    s.answers.wait(waiting[0])
    stopped = s.store.messages(waiting[0])[-1]
    assert (stopped.content, stopped.finish_reason) == ("", "cancelled")
    s.answers.stop(writing)
    until(lambda: s.answers.live(waiting[1]).text)


def test_an_answer_that_waits_while_the_model_is_changed_is_written_by_the_next(stage):
    s = stage(endless())
    old, s.engine = s.host.wait(10), FakeEngine()
    old.closed = True  # it refuses, but the host has no other yet
    refused = s.ask("too early")
    s.answers.wait(refused)
    assert s.store.messages(refused)[-1].finish_reason == "error"
    s.release.clear()
    assert s.host.switch(model="another")
    chat_id = s.ask("in between")
    s.release.set()
    s.answers.wait(chat_id)
    assert s.store.messages(chat_id)[-1].content == "one two three"


@pytest.mark.parametrize("error", [TransferFailed("The disk failed.", "Check it."), RuntimeError("odd")])
def test_a_failing_answer_says_why_and_the_next_one_works(stage, error):
    s = stage(FakeEngine(fail=error))
    chat_id = s.ask()
    s.finish()
    answer = s.store.messages(chat_id)[-1]
    assert answer.finish_reason == "error"
    assert answer.stats["error"]["cause"]
    assert answer.stats["error"]["remedy"]
    s.engine.fail = None
    s.ask()
    s.finish()


def test_an_engines_words_are_kept_unchanged(stage):
    s = stage(BudgetTooSmall("Needs 7.1 GB, 5.3 GB free.", "Lower the context.", 7))
    chat_id = s.ask()
    s.finish()
    error = s.store.messages(chat_id)[-1].stats["error"]
    assert error == {"kind": "BudgetTooSmall", "cause": "Needs 7.1 GB, 5.3 GB free.", "remedy": "Lower the context."}


def test_a_full_context_is_told_and_dropping_the_oldest_turns_helps(stage):
    s = stage(FakeEngine(context_length=40))
    chat_id = s.ask("word " * 30)
    s.finish()
    s.store.add_user_message(chat_id, "word " * 15)
    s.answers.start(chat_id, Sampling())
    s.finish()
    failed = s.store.messages(chat_id)[-1]
    assert failed.stats["error"]["kind"] == "ContextFull"
    s.store.cut_after(chat_id, failed.position - 1)
    s.answers.start(chat_id, Sampling(), drop_oldest=True)
    s.finish()
    assert s.store.messages(chat_id)[-1].finish_reason == "stop"
    assert [m["role"] for m in s.engine.prompts[-1]] == ["user"]
    assert len(s.store.messages(chat_id)) == 4  # nothing is forgotten, only no longer sent


def test_every_change_of_a_chat_changes_its_stamp(stage):
    s = stage(FakeEngine())
    chat_id = s.store.create_chat()
    stamps = [s.answers.stamp(chat_id)]
    s.store.add_user_message(chat_id, "hi")
    s.answers.start(chat_id, Sampling())
    stamps.append(s.answers.stamp(chat_id))
    s.finish()
    stamps.append(s.answers.stamp(chat_id))
    assert len(set(stamps)) >= 2
    assert stamps[-1] != stamps[0]
