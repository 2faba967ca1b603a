"""Prompt files: what is accepted, and which line is blamed for what."""

from __future__ import annotations

import json
import os

import pytest

from engine.errors import InvalidSetting
from engine.lab.prompts import DEFAULT_PROMPTS, ROLES, parse_prompts, read_prompts

GOOD = '{"messages": [{"role": "user", "content": "Hello"}]}'


def test_a_file(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f"{GOOD}\n\n{GOOD}\n", encoding="utf-8")
    assert read_prompts(file) == [[{"role": "user", "content": "Hello"}]] * 2
    assert len(read_prompts(file, take=1)) == 1


def test_the_set_that_comes_with_it_is_valid():
    text = "\n".join(json.dumps({"messages": chat}) for chat in DEFAULT_PROMPTS)
    assert parse_prompts(text, "built in") == list(DEFAULT_PROMPTS) == read_prompts(None)
    assert {message["role"] for chat in DEFAULT_PROMPTS for message in chat} == set(ROLES)


@pytest.mark.parametrize(
    ("line", "blame"),
    [
        ("not json", "is not JSON"),
        ("[]", 'no "messages"'),
        ('{"messages": []}', 'no "messages"'),
        ('{"messages": "Hello"}', 'no "messages"'),
        ('{"messages": ["Hello"]}', "role"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "role"),
        ('{"messages": [{"role": "user"}]}', "without text"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "without text"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "answers alone"),
    ],
)
def test_a_bad_line_is_named(line, blame):
    with pytest.raises(InvalidSetting) as caught:
        parse_prompts(f"{GOOD}\n{line}\n", "prompts.jsonl")
    assert "Line 2 of prompts.jsonl" in caught.value.cause
    assert blame in caught.value.cause
    assert '"messages"' in caught.value.remedy


def test_files_that_cannot_be_used(tmp_path):
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for file, blame in ((empty, "no prompts"), (binary, "not UTF-8"), (tmp_path / "absent", "does not exist")):
        with pytest.raises(InvalidSetting, match=blame):
            read_prompts(file)
    with pytest.raises(InvalidSetting, match=os.strerror(21)):
        read_prompts(tmp_path)


def test_a_chat_that_ends_with_an_answer_is_answered_anew():
    line = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    assert parse_prompts(line, "x") == [[{"role": "user", "content": "a"}]]
