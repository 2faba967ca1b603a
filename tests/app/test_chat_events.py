"""The chat's handlers, called as the page calls them, in orders that a browser seldom produces."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import pytest

from app.ui.chat import ChatEvents
from app.ui.layout import ChatParts
from app.ui.tabs import Tabs

PAGE = SimpleNamespace(session_hash="page")


@pytest.fixture
def opened(make_program):
    """A page that was sent the newest state of a chat: handlers, parts, program and the chat's id."""
    program = make_program()
    parts = ChatParts(**{field.name: field.name for field in fields(ChatParts)})
    events, chat_id = ChatEvents(program, parts, Tabs()), program.store.create_chat()
    program.store.add_user_message(chat_id, "Tell me a story")
    events.open(chat_id, PAGE)
    return events, parts, program, chat_id


def test_a_page_that_shows_the_chat_as_it_is_is_left_alone(opened):
    events, parts, program, chat_id = opened
    assert parts.stamp not in events.refresh(program.answers.stamp(chat_id), PAGE)


def test_a_page_on_which_an_older_state_arrived_last_gets_the_newest_again(opened):
    """Two states were sent at the same moment and overtook each other: else the page would show "Thinking" for ever."""
    events, parts, program, chat_id = opened
    overtaken = program.answers.stamp(chat_id)
    program.answers.touch(chat_id)
    newest = program.answers.stamp(chat_id)
    assert events.refresh(newest, PAGE)[parts.stamp] == newest
    assert events.refresh(overtaken, PAGE)[parts.stamp] == newest
