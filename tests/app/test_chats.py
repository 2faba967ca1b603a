"""Chats survive: restarts, killed writers, damaged and read-only files."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from app.chats import INTERRUPTED, WRITING, ChatStore, ChatStoreUnavailable
from engine.errors import EngineError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "chats.sqlite"


@pytest.fixture
def store(path):
    store = ChatStore(path)
    yield store
    store.close()


def ask(store, words="How tall is it?"):
    chat_id = store.create_chat()
    store.add_user_message(chat_id, words)
    return chat_id


def test_a_chat_is_there_again_after_reopening(store, path):
    chat_id = ask(store)
    answer = store.begin_answer(chat_id)
    store.save_answer(answer.id, "828 m", [5, 6, 7], "stop", {"tokens": 3})
    store.close()

    again = ChatStore(path)
    user, assistant = again.messages(chat_id)
    assert (user.role, user.content, user.finish_reason) == ("user", "How tall is it?", None)
    assert (assistant.content, assistant.token_ids, assistant.finish_reason) == ("828 m", (5, 6, 7), "stop")
    assert assistant.stats == {"tokens": 3}
    assert [chat.title for chat in again.chats()] == ["How tall is it?"]
    again.close()


def test_chats_without_a_message_are_not_listed_and_the_latest_comes_first(store):
    store.create_chat()
    first, second = ask(store, "first"), ask(store, "second")
    store.add_user_message(first, "again")
    assert [chat.id for chat in store.chats()] == [first, second]


def test_a_long_first_message_is_cut_for_the_title(store):
    chat_id = ask(store, "word " * 100)
    title = store.chat(chat_id).title
    assert len(title) <= 60
    assert title.endswith("…")


def test_editing_forgets_what_came_after_and_renames_the_chat(store):
    chat_id = ask(store)
    store.begin_answer(chat_id)
    store.add_user_message(chat_id, "And wide?")
    first = store.messages(chat_id)[0]
    store.edit_user_message(first.id, "How deep is it?")
    assert [m.content for m in store.messages(chat_id)] == ["How deep is it?"]
    assert store.chat(chat_id).title == "How deep is it?"


def test_a_partial_answer_survives_a_killed_writer_and_is_called_interrupted(path):
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    chat_id = writer.stdout.readline().strip()
    assert writer.stdout.readline().strip() == "saved"
    writer.send_signal(signal.SIGKILL)
    writer.wait()

    store = ChatStore(path)
    user, assistant = store.messages(chat_id)
    assert user.content == "Tell me a story"
    assert (assistant.content, assistant.token_ids) == ("Once upon a", (1, 2, 3))
    assert assistant.finish_reason == INTERRUPTED
    store.close()


KILLED_WRITER = """
import sys, time
from pathlib import Path
from app.chats import ChatStore
store = ChatStore(Path(sys.argv[1]))
chat_id = store.create_chat()
print(chat_id, flush=True)
store.add_user_message(chat_id, "Tell me a story")
answer = store.begin_answer(chat_id)
store.save_answer(answer.id, "Once upon a", [1, 2, 3])
print("saved", flush=True)
time.sleep(60)
"""


def test_an_answer_another_living_process_writes_is_left_alone(store, path):
    chat_id = ask(store)
    store.begin_answer(chat_id)
    second = ChatStore(path)  # same process: its writer lives
    assert second.messages(chat_id)[-1].finish_reason == WRITING
    second.close()


def test_a_damaged_file_is_told_in_words_and_the_chat_goes_on_in_memory(path):
    path.parent.mkdir()
    path.write_bytes(b"this is no database, " * 400)
    with pytest.raises(ChatStoreUnavailable) as caught:
        ChatStore(path)
    assert isinstance(caught.value, EngineError)
    assert str(path) in caught.value.cause
    assert caught.value.remedy

    store = ChatStore.open_or_memory(path)
    chat_id = ask(store)
    assert store.messages(chat_id)[0].content == "How tall is it?"
    assert "memory" in store.warning
    assert path.read_bytes().startswith(b"this is no database")  # the person may still rescue it
    store.close()


def test_a_database_of_a_newer_version_is_not_touched(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    store = ChatStore.open_or_memory(path)
    assert "newer version" in store.warning
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
    store.close()


def test_a_folder_that_cannot_be_made_is_told_in_words(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    store = ChatStore.open_or_memory(blocker / "chats.sqlite")
    assert "cannot be used" in store.warning
    store.close()


def test_a_database_that_fails_while_running_is_replaced_by_memory(store, path):
    chat_id = ask(store)
    size = path.stat().st_size
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._database.dispose()  # the next use opens the file anew
    os.truncate(path, size // 3)
    path.write_bytes(b"\0" * 5000)
    message = store.add_user_message(chat_id, "Still there?")
    assert message.content == "Still there?"
    assert "memory" in store.warning
    assert "Still there?" in [m.content for m in store.messages(chat_id)]
    store.close()
