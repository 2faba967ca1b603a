"""Prompts from chats and text from ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.errors import InvalidSetting
from engine.generation.prompt import encode_chat
from engine.generation.text_stream import TextStream

END = 256


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; 256 ends a turn."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert tokenizer.convert_tokens_to_ids("<end>") == END
    return tokenizer


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_generated_ids_are_used_instead_of_their_text(tokenizer):
    odd = [*ids_of(tokenizer, "an"), *ids_of(tokenizer, "swer"), END]
    chat = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "not what the ids say", "token_ids": odd},
        {"role": "user", "content": "more"},
    ]
    ids = encode_chat(tokenizer, chat, {END})
    assert tokenizer.decode(ids) == "<user>question<end>\n<assistant>answer<end>\n<user>more<end>\n<assistant>"
    first = encode_chat(tokenizer, chat[:1], {END})
    assert ids[: len(first) + len(odd)] == first + odd  # the follow-up finds its whole past


def test_an_answer_cut_short_is_closed_by_the_template(tokenizer):
    cut = ids_of(tokenizer, "answ")
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "token_ids": cut}]
    ids = encode_chat(tokenizer, [*chat, {"role": "user", "content": "r"}], {END})
    assert tokenizer.decode(ids) == "<user>q<end>\n<assistant>answ<end>\n<user>r<end>\n<assistant>"


def test_a_template_that_rewrites_answers_is_taken_at_its_word(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = template.replace("m['content']", "m['content'] | upper")
        chat = [{"role": "assistant", "content": "shout", "token_ids": ids_of(tokenizer, "x")}]
        assert tokenizer.decode(encode_chat(tokenizer, chat, {END})) == "<assistant>SHOUT<end>\n<assistant>"
    finally:
        tokenizer.chat_template = template


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "wizard", "content": "x"}], [{"content": "x"}]])
def test_what_is_no_chat_is_refused(tokenizer, messages):
    with pytest.raises(InvalidSetting):
        encode_chat(tokenizer, messages, {END})


@settings(max_examples=60)
@given(text=st.text(max_size=40), stop=st.lists(st.text(min_size=1, max_size=4), max_size=2))
def test_the_stream_is_the_text_up_to_the_first_stop(tokenizer, text, stop):
    stream = TextStream(tokenizer, stop)
    out = ""
    for token in ids_of(tokenizer, text):
        out += stream.push(token)
        assert "\ufffd" not in out or "\ufffd" in text
        if stream.stopped:
            break
    out += stream.flush()
    cuts = [at for at in (text.find(word) for word in stop) if at >= 0]
    assert out == (text[: min(cuts)] if cuts else text)
    assert stream.stopped == bool(cuts)
