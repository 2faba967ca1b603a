"""The terminal chat on a scripted engine: turns, commands, Ctrl-C."""

from __future__ import annotations

import signal

import pytest

from app.settings import Sampling
from app.terminal_chat import TerminalChat, stream_answer
from engine.errors import ContextFull, TransferFailed
from engine.metrics import EngineStats
from tests.app.fake_engine import FakeEngine, FakeEvent


class Talk:
    """A chat whose output can be read."""

    def __init__(self, engine: FakeEngine, **sampling) -> None:
        self.engine, self.written = engine, []
        self.chat = TerminalChat(engine, Sampling(**sampling), self.written.append)

    def say(self, *lines: str) -> str:
        self.written.clear()
        self.chat.converse(lines)
        return "".join(self.written)


class InterruptedEngine(FakeEngine):
    """Ctrl-C is pressed while it writes its second word; `presses` times."""

    presses = 1

    def _step(self) -> None:
        super()._step()
        if self._used % 2 == 0:
            for _ in range(self.presses):
                signal.raise_signal(signal.SIGINT)


def test_turns_are_one_conversation_with_the_generated_ids():
    talk = Talk(FakeEngine(), system_prompt="Be brief.", temperature=0.0, stop=["x"])
    assert talk.say("Hello", "And then?") == "one two three\none two three\n"
    assert talk.engine.prompts[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "one two three", "token_ids": [0, 1, 2]},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "one two three", "token_ids": [0, 1, 2]},
    ]
    assert talk.engine.arguments["temperature"] == 0.0
    assert talk.engine.arguments["stop"] == ("x",)


def test_reset_begins_a_new_chat_and_keeps_the_system_prompt():
    talk = Talk(FakeEngine(), system_prompt="Be brief.")
    talk.say("Hello", "/reset", "Again")
    assert [message["content"] for message in talk.engine.prompts[1]][:2] == ["Be brief.", "Again"]


def test_quit_and_empty_lines():
    talk = Talk(FakeEngine())
    assert talk.say("", "  ", "/quit", "never asked") == ""
    assert talk.engine.prompts == []


def test_budget_shows_and_changes_the_plan():
    talk = Talk(FakeEngine())
    assert "Memory in use" in talk.say("/budget 25%")
    assert talk.engine.plan.slots == 48
    before = talk.engine.plan
    assert "Memory in use" in talk.say("/budget")
    assert talk.engine.plan is before


def test_errors_are_said_and_the_chat_goes_on():
    talk = Talk(FakeEngine())
    said = talk.say("/budget 3", "Hello")
    assert "below what is needed. Give 0.3 GB." in said
    assert "one two three" in said


def test_a_question_that_failed_does_not_burden_the_next():
    engine = FakeEngine(fail=ContextFull("The chat is full.", "/reset begins a new one.", 9, 8))
    talk = Talk(engine)
    assert "The chat is full." in talk.say("too long")
    engine.fail = None
    talk.say("short")
    assert [message["content"] for message in engine.prompts[-1]] == ["short", "one two three"]


def test_unknown_commands_and_help():
    talk = Talk(FakeEngine())
    assert "no command /what" in talk.say("/what is this")
    assert "/budget" in talk.say("/help")
    assert talk.engine.prompts == []


def test_stats_in_words():
    talk = Talk(FakeEngine())
    talk.engine.stats = lambda: EngineStats(activations=10, hits=7, late=1, misses=2, tokens=5, model_bytes_total=100)
    said = talk.say("/stats")
    assert "7 hits, 1 late, 2 misses (70% ready when needed)" in said


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on():
    talk = Talk(InterruptedEngine(words=["a", "b", "c", "d"]))
    handler = signal.getsignal(signal.SIGINT)
    said = talk.say("go")
    assert 1 <= len(said.strip()) < 4
    assert signal.getsignal(signal.SIGINT) is handler
    assert talk.say("/help").startswith("/budget")


def test_a_second_ctrl_c_leaves():
    engine = InterruptedEngine(words=["a", "b", "c", "d"])
    engine.presses = 2
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Talk(engine).say("go")
    assert signal.getsignal(signal.SIGINT) is handler


def test_escape_sequences_of_a_model_do_not_reach_the_terminal():
    engine = FakeEngine(words=["\x1b]0;owned\x07", "tab\tnew\nline", "\x9b2J"])
    written: list[str] = []
    answer = stream_answer(engine, [{"role": "user", "content": "x"}], Sampling(), written.append)
    assert "".join(written) == "]0;ownedtab\tnew\nline2J"
    assert answer.text.startswith("\x1b")


def test_the_handler_is_restored_after_an_error():
    engine = FakeEngine(fail=TransferFailed("The disk failed.", "Check it."))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TransferFailed):
        stream_answer(engine, [{"role": "user", "content": "x"}], Sampling(), lambda text: None)
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_finish_reason_is_that_of_the_last_event():
    class Cut(FakeEngine):
        def _answer(self, messages, max_new_tokens, submission):
            yield FakeEvent("a", 5, None)
            yield FakeEvent("", None, "cancelled")

    answer = stream_answer(Cut(), [{"role": "user", "content": "x"}], Sampling(), lambda text: None)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("a", [5], "cancelled")
