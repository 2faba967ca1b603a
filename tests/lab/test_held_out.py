"""Which tokens of the held-out texts are measured."""

from __future__ import annotations

import pytest

from engine.lab.held_out import MAX_PASSAGE_TOKENS, chat_passage, load_chats, load_documentation


class Characters:
    """A tokenizer whose ids are code points."""

    @staticmethod
    def encode(text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(character) for character in text]


CHAT = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]


def counted_text(passage) -> str:
    return "".join(chr(token) for token, counts in zip(passage.ids, passage.counted, strict=True) if counts)


@pytest.mark.parametrize("complete", [True, False])
def test_of_a_chat_the_answers_count_and_their_end_if_they_have_one(complete):
    passage = chat_passage({"messages": CHAT, "complete": complete}, Characters())
    whole = "".join(map(chr, passage.ids))
    assert whole.startswith("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.")
    assert counted_text(passage) == ("Hello.<|im_end|>" if complete else "Hello.")


def test_the_shipped_texts_are_long_enough_and_the_first_token_of_a_passage_never_counts():
    for passages in (load_chats(Characters()), load_documentation(Characters())):
        assert sum(sum(passage.counted) for passage in passages) > 10_000
        assert not any(passage.counted[0] for passage in passages)
    assert max(len(passage.ids) for passage in load_documentation(Characters())) == MAX_PASSAGE_TOKENS
