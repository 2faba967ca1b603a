"""What of a chat the model is given."""

from app.chats import Message
from app.prompt import drop_oldest_turns, engine_messages


def chat(*contents):
    return [
        Message(str(i), "c", i, "user" if i % 2 == 0 else "assistant", text, (1, 2) if i % 2 else None, "stop")
        for i, text in enumerate(contents)
    ]


def test_answers_carry_their_token_ids_and_the_system_prompt_comes_first():
    prompt = engine_messages(chat("hi", "hello", "more"), 0, "Be brief.")
    assert prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello", "token_ids": [1, 2]},
        {"role": "user", "content": "more"},
    ]


def test_a_failed_answer_is_left_out_and_roles_still_alternate():
    prompt = engine_messages(chat("hi", "", "are you there?"), 0, "")
    assert prompt == [{"role": "user", "content": "hi\n\nare you there?"}]


def test_messages_before_the_first_position_are_not_sent():
    assert [m["content"] for m in engine_messages(chat("a", "b", "c"), 2, " ")] == ["c"]


def test_dropping_takes_whole_turns_until_the_rest_fits():
    long = "x" * 3500  # about 1,000 tokens
    messages = chat(long, "b", long, "d", "short")
    assert drop_oldest_turns(messages, 0, 2000) == 2
    assert drop_oldest_turns(messages, 2, 2000) == 4  # asked again: at least one turn more
    assert drop_oldest_turns(messages, 4, 2000) == 4  # the last message always stays
