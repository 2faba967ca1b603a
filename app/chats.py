"""Chats on disk: every message is written the moment it exists, an answer while it grows.

SQLite in WAL mode survives a killed process with what was committed; an answer that was being written by a
process that no longer lives is shown as interrupted. Where the database cannot be used, the chat goes on in
memory and `ChatStore.warning` says so.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from sqlalchemy import Engine as Database
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool
from sqlmodel import Field, Session, SQLModel, col, create_engine, delete, func, select

from engine.errors import EngineError

SCHEMA_VERSION = 1
TITLE_LENGTH = 60
WRITING = "writing"
INTERRUPTED = "interrupted"

Result = TypeVar("Result")


class ChatStoreUnavailable(EngineError):
    """The database of chats cannot be opened, read or written."""


class Chat(SQLModel, table=True):
    id: str = Field(primary_key=True)
    title: str = ""
    created_at: float
    updated_at: float
    first_position: int = 0  # messages before it are shown but no longer sent to the model


class StoredMessage(SQLModel, table=True):
    __tablename__ = "message"

    id: str = Field(primary_key=True)
    chat_id: str = Field(foreign_key="chat.id", index=True)
    position: int
    role: str
    content: str = ""
    token_ids: str | None = None  # JSON list: what the model generated, so that a follow-up need not re-tokenise
    finish_reason: str | None = None
    stats: str | None = None  # JSON object
    writer: str | None = None  # the process that is writing this answer
    created_at: float


@dataclass(frozen=True)
class Message:
    """One message as others see it; `finish_reason` is None for the person's own."""

    id: str
    chat_id: str
    position: int
    role: str
    content: str
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatSummary:
    id: str
    title: str
    updated_at: float
    first_position: int


class ChatStore:
    """All chats of this person. Safe to use from several threads."""

    def __init__(self, path: Path | None) -> None:
        """Opens (and makes, where missing) the database at `path`; None keeps chats in memory only.

        Raises ChatStoreUnavailable; use `open_or_memory` to go on without a disk.
        """
        self.path = path
        self.warning: str | None = None
        self._lock = threading.RLock()
        self._writer = _this_process()
        try:
            self._database = _connect(path)
            self._mark_interrupted()
        except (DatabaseError, OSError) as error:
            raise _unavailable(path, error) from error

    @classmethod
    def open_or_memory(cls, path: Path) -> ChatStore:
        """The store at `path`, or one in memory whose `warning` says why."""
        try:
            return cls(path)
        except ChatStoreUnavailable as error:
            store = cls(None)
            store.warning = f"{error} Until then chats are kept in memory and are gone when the program ends."
            return store

    def create_chat(self) -> str:
        """Makes an empty chat and returns its id. It is listed once it has a message."""
        chat_id = uuid.uuid4().hex[:12]

        def work(session: Session) -> None:
            now = time.time()
            session.add(Chat(id=chat_id, created_at=now, updated_at=now))

        self._write(work)
        return chat_id

    def chats(self, limit: int = 200) -> list[ChatSummary]:
        """Chats that have at least one message, the latest first."""

        def work(session: Session) -> list[ChatSummary]:
            query = select(Chat).where(Chat.title != "").order_by(col(Chat.updated_at).desc()).limit(limit)
            return [_summary(chat) for chat in session.exec(query)]

        return self._read(work)

    def chat(self, chat_id: str) -> ChatSummary | None:
        def work(session: Session) -> ChatSummary | None:
            chat = session.get(Chat, chat_id)
            return _summary(chat) if chat else None

        return self._read(work)

    def messages(self, chat_id: str) -> list[Message]:
        """All messages of a chat, in order."""

        def work(session: Session) -> list[Message]:
            query = select(StoredMessage).where(StoredMessage.chat_id == chat_id)
            return [_message(row) for row in session.exec(query.order_by(col(StoredMessage.position)))]

        return self._read(work)

    def add_user_message(self, chat_id: str, content: str) -> Message:
        """Appends what the person wrote; the first one names the chat."""
        return self._append(chat_id, StoredMessage(**_new(chat_id, "user"), content=content))

    def begin_answer(self, chat_id: str) -> Message:
        """Appends an empty answer that this process is now writing."""
        row = StoredMessage(**_new(chat_id, "assistant"), finish_reason=WRITING, writer=self._writer)
        return self._append(chat_id, row)

    def save_answer(
        self,
        message_id: str,
        content: str,
        token_ids: Sequence[int],
        finish_reason: str = WRITING,
        stats: dict[str, Any] | None = None,
    ) -> None:
        """Writes an answer as far as it has come; any other `finish_reason` than WRITING ends it."""

        def work(session: Session) -> None:
            row = session.get(StoredMessage, message_id)
            if row is None:  # the chat was cut back meanwhile
                return
            row.content = content
            row.token_ids = json.dumps(list(token_ids))
            row.finish_reason = finish_reason
            row.stats = json.dumps(stats) if stats else row.stats
            row.writer = self._writer if finish_reason == WRITING else None
            _touch(session, row.chat_id)

        self._write(work)

    def edit_user_message(self, message_id: str, content: str) -> None:
        """Changes what the person wrote and forgets everything after it."""

        def work(session: Session) -> None:
            row = session.get(StoredMessage, message_id)
            if row is None:
                return
            row.content = content
            _cut(session, row.chat_id, row.position + 1)
            if row.position == 0:
                _name(session, row.chat_id, content)
            _touch(session, row.chat_id)

        self._write(work)

    def cut_after(self, chat_id: str, position: int) -> None:
        """Forgets the messages after `position`."""
        self._write(lambda session: _cut(session, chat_id, position + 1))

    def send_from(self, chat_id: str, position: int) -> None:
        """From now on only messages from `position` on go to the model."""

        def work(session: Session) -> None:
            chat = session.get(Chat, chat_id)
            if chat is not None:
                chat.first_position = position

        self._write(work)

    def close(self) -> None:
        self._database.dispose()

    def _append(self, chat_id: str, row: StoredMessage) -> Message:
        def work(session: Session) -> Message:
            _keep_chat(session, chat_id)
            last = session.exec(select(func.max(StoredMessage.position)).where(StoredMessage.chat_id == chat_id)).one()
            fresh = StoredMessage(**{**row.model_dump(), "position": 0 if last is None else last + 1})
            session.add(fresh)
            if fresh.position == 0:
                _name(session, chat_id, fresh.content)
            _touch(session, chat_id)
            session.flush()
            return _message(fresh)

        return self._write(work)

    def _mark_interrupted(self) -> None:
        def work(session: Session) -> None:
            query = select(StoredMessage).where(StoredMessage.finish_reason == WRITING)
            for row in session.exec(query):
                if not _is_alive(row.writer):
                    row.finish_reason, row.writer = INTERRUPTED, None

        with self._lock, Session(self._database) as session:
            work(session)
            session.commit()

    def _read(self, work: Callable[[Session], Result]) -> Result:
        return self._run(work, commit=False)

    def _write(self, work: Callable[[Session], Result]) -> Result:
        return self._run(work, commit=True)

    def _run(self, work: Callable[[Session], Result], commit: bool) -> Result:
        with self._lock:
            try:
                return _transact(self._database, work, commit)
            except (DatabaseError, OSError) as error:
                if self.path is None:
                    raise _unavailable(None, error) from error
                self._go_on_in_memory(error)
                return _transact(self._database, work, commit)

    def _go_on_in_memory(self, error: Exception) -> None:
        words = _unavailable(self.path, error)
        memory = _connect(None)
        _copy_readable(self._database, memory)
        self._database.dispose()
        self._database, self.path = memory, None
        self.warning = f"{words} Until then chats are kept in memory and are gone when the program ends."


def _transact(database: Database, work: Callable[[Session], Result], commit: bool) -> Result:
    with Session(database) as session:
        result = work(session)
        if commit:
            session.commit()
        return result


def _connect(path: Path | None) -> Database:
    if path is None:
        database = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False, "timeout": 5})
    event.listen(database, "connect", _set_pragmas)
    try:
        _check(database, path)
        SQLModel.metadata.create_all(database)
    except BaseException:
        database.dispose()
        raise
    return database


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing; a power cut, the last second
    connection.execute("PRAGMA foreign_keys=ON")


def _check(database: Database, path: Path | None) -> None:
    with database.begin() as connection:
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if version > SCHEMA_VERSION:
            raise OSError(f"it was written by a newer version of this program (format {version})")
        damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if damage != "ok":
            raise OSError(f"it is damaged ({damage})")
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    if path is not None and not os.access(path, os.W_OK):
        raise PermissionError("it is read-only")


def _unavailable(path: Path | None, error: Exception) -> ChatStoreUnavailable:
    reason = str(getattr(error, "orig", None) or error)
    return ChatStoreUnavailable(
        f"The chats in {path or 'memory'} cannot be used: {reason}.",
        "Check free space and permissions there; if the file is damaged, move it away and start again.",
    )


def _copy_readable(source: Database, target: Database) -> None:
    """Takes over what can still be read, so that the open chat does not vanish under the person's eyes."""
    try:
        with Session(source) as old, Session(target) as new:
            for table in (Chat, StoredMessage):
                for row in old.exec(select(table)):
                    new.add(table(**row.model_dump()))
            new.commit()
    except DatabaseError:
        return  # nothing is readable any more: the chat starts afresh and the warning says why


def _cut(session: Session, chat_id: str, position: int) -> None:
    session.exec(
        delete(StoredMessage).where(col(StoredMessage.chat_id) == chat_id, col(StoredMessage.position) >= position)
    )
    chat = session.get(Chat, chat_id)
    if chat is not None:
        chat.first_position = min(chat.first_position, max(position - 1, 0))


def _keep_chat(session: Session, chat_id: str) -> None:
    """Makes the chat again where it was lost with its database: the page that shows it goes on writing to it."""
    if session.get(Chat, chat_id) is None:
        now = time.time()
        session.add(Chat(id=chat_id, created_at=now, updated_at=now))
        session.flush()


def _touch(session: Session, chat_id: str) -> None:
    chat = session.get(Chat, chat_id)
    if chat is not None:
        chat.updated_at = time.time()


def _name(session: Session, chat_id: str, content: str) -> None:
    chat = session.get(Chat, chat_id)
    if chat is not None:
        words = " ".join(content.split())
        chat.title = words if len(words) <= TITLE_LENGTH else words[: TITLE_LENGTH - 1].rstrip() + "…"


def _new(chat_id: str, role: str) -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "chat_id": chat_id,
        "position": 0,
        "role": role,
        "created_at": time.time(),
    }


def _summary(chat: Chat) -> ChatSummary:
    return ChatSummary(chat.id, chat.title, chat.updated_at, chat.first_position)


def _message(row: StoredMessage) -> Message:
    return Message(
        row.id,
        row.chat_id,
        row.position,
        row.role,
        row.content,
        tuple(json.loads(row.token_ids)) if row.token_ids else None,
        row.finish_reason,
        json.loads(row.stats) if row.stats else {},
    )


def _this_process() -> str:
    return f"{os.getpid()}:{int(psutil.Process().create_time())}"


def _is_alive(writer: str | None) -> bool:
    """Whether the process that was writing still runs; its start time guards against a recycled id."""
    if not writer:
        return False
    pid, started = (int(part) for part in writer.split(":"))
    try:
        return int(psutil.Process(pid).create_time()) == started
    except psutil.Error:
        return False
