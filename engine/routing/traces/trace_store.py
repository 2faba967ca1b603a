"""Recorded routing on disk: one SQLite file, compressed pieces of conversations, each piece one transaction.

A process killed in mid-write leaves every piece that was written before.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.errors import TraceStoreUnavailable
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace, joined
from engine.routing.traces.trace_file import check_form, connect, file_bytes, give_form, in_words, is_empty
from engine.routing.traces.trace_pieces import decode, encode
from engine.routing.traces.traced_model import TracedModel


@dataclass(frozen=True)
class TraceSummary:
    """What a file holds; `bytes` are those of its contents, `model` is None where nothing was ever recorded."""

    path: Path
    model: TracedModel | None
    conversations: int
    tokens: int
    bytes: int


class TraceStore:
    """The conversations of one model. May be used from several threads; close it when done."""

    def __init__(self, path: Path, model: TracedModel | None = None, limit_bytes: int | None = None) -> None:
        """Opens `path`; with a `model` to record for, makes what is missing. Past `limit_bytes` the oldest
        conversations go. Raises TraceStoreUnavailable, also for another model's file.
        """
        self.path = Path(path)
        self._limit_bytes = limit_bytes
        self._lock = threading.RLock()
        with in_words(self.path):
            self._database = connect(self.path, create=model is not None)
            try:
                if model is not None and not os.access(self.path, os.W_OK):
                    raise PermissionError("it is read-only")
                self.model = self._prepare(model)
            except BaseException:
                self._database.close()
                raise

    # -- writing --------------------------------------------------------------------------------------------------

    def append(self, first: int, rows: RoutingTrace) -> None:
        """Keeps `rows` as positions `first`... of their conversation; what was recorded from there on goes.

        Raises TraceStoreUnavailable; the file is then as it was before.
        """
        with self._transaction() as database:
            begin = "INSERT OR IGNORE INTO conversations (id, created) VALUES (?, ?)"
            database.execute(begin, (rows.conversation, time.time()))
            self._cut(rows.conversation, first)
            self._insert(first, rows)
        self._drop_oldest(rows.conversation)

    def forget(self) -> int:
        """Deletes everything recorded and gives its room back; returns how many bytes the file shrank by."""
        with self._lock, in_words(self.path):
            before = file_bytes(self.path)
            with self._transaction() as database:
                database.execute("DELETE FROM pieces")
                database.execute("DELETE FROM conversations")
            self._database.execute("VACUUM")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return max(before - file_bytes(self.path), 0)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> TraceStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- reading --------------------------------------------------------------------------------------------------

    def traces(self, until: int | None = None) -> Iterator[RoutingTrace]:
        """Every conversation as one trace, the oldest first. Optional arrays only where all its rows have them.

        `until`: only what was recorded up to that `mark`.
        """
        with self._lock, in_words(self.path):
            ids = [row[0] for row in self._database.execute("SELECT id FROM conversations ORDER BY number")]
        for conversation in ids:
            found = self.trace(conversation, until)
            if found is not None:
                yield found

    def trace(self, conversation: str, until: int | None = None) -> RoutingTrace | None:
        """One conversation, as in `traces`; None where nothing of it is recorded."""
        pieces = self._pieces(conversation, until)
        return joined(pieces) if pieces else None

    def summary(self) -> TraceSummary:
        """Counts of what is recorded."""
        with self._lock, in_words(self.path):
            count = "SELECT COUNT(DISTINCT conversation), COALESCE(SUM(tokens), 0) FROM pieces"
            conversations, tokens = self._database.execute(count).fetchone()
            return TraceSummary(self.path, self.model, conversations, tokens, self._used_bytes())

    def mark(self) -> int:
        """Stands for what is recorded by now: what comes later lies after it."""
        with self._lock, in_words(self.path):
            return int(self._database.execute("SELECT COALESCE(MAX(rowid), 0) FROM pieces").fetchone()[0])

    def tokens_by_conversation(self, after: int = 0) -> dict[str, int]:
        """How many tokens of each conversation are recorded, of those that have any; `after`: since that `mark`."""
        count = "SELECT conversation, SUM(tokens) FROM pieces WHERE rowid > ? GROUP BY conversation"
        with self._lock, in_words(self.path):
            return dict(self._database.execute(count, (after,)).fetchall())

    # -- with the lock held ---------------------------------------------------------------------------------------

    def _prepare(self, model: TracedModel | None) -> TracedModel | None:
        """Checks the form of the file, or gives a new one its form. Returns the model it is of."""
        database = self._database
        if model is not None and is_empty(database):
            give_form(database)
        check_form(database, self.path)
        row = database.execute("SELECT name, fingerprint, layers, experts, top_k, vocabulary FROM model").fetchone()
        recorded = TracedModel(row[0], row[1], RoutingShape(*row[2:])) if row else None
        if model is None or recorded == model:
            return recorded
        if recorded is not None and recorded.fingerprint != model.fingerprint:
            raise TraceStoreUnavailable(
                f"{self.path} holds routing of {recorded.name} with other weights than those of {model.name}.",
                "Give another file.",
            )
        with self._transaction():
            database.execute("DELETE FROM model")
            database.execute("INSERT INTO model VALUES (?, ?, ?, ?, ?, ?)", _columns(model))
        return model

    def _insert(self, first: int, rows: RoutingTrace) -> None:
        assert self.model is not None, "opened for reading only"
        blob = encode(rows, self.model.shape.experts)
        insert = "INSERT INTO pieces (conversation, first, tokens, arrays) VALUES (?, ?, ?, ?)"
        self._database.execute(insert, (rows.conversation, first, len(rows), blob))

    def _cut(self, conversation: str, position: int) -> None:
        """Takes away what is recorded at `position` and later."""
        query = "SELECT first, tokens, arrays FROM pieces WHERE conversation = ? ORDER BY first DESC LIMIT 1"
        while (last := self._database.execute(query, (conversation,)).fetchone()) is not None:
            first, tokens, blob = last
            if first + tokens < position:
                raise ValueError(f"Positions {first + tokens} to {position} of {conversation} were never recorded.")
            if first + tokens == position:
                return
            self._database.execute("DELETE FROM pieces WHERE conversation = ? AND first = ?", (conversation, first))
            if first < position:
                self._insert(first, decode(conversation, blob).rows(0, position - first))

    def _drop_oldest(self, current: str) -> None:
        """Keeps within the limit; the conversation being recorded stays."""
        if self._limit_bytes is None:
            return
        oldest = "SELECT id FROM conversations WHERE id != ? ORDER BY number LIMIT 1"
        with self._lock, in_words(self.path):
            while self._used_bytes() > self._limit_bytes:
                found = self._database.execute(oldest, (current,)).fetchone()
                if found is None:
                    return
                self._database.execute("DELETE FROM conversations WHERE id = ?", found)
                self._database.execute("PRAGMA incremental_vacuum").fetchall()

    def _pieces(self, conversation: str, until: int | None) -> list[RoutingTrace]:
        query = "SELECT arrays FROM pieces WHERE conversation = ? AND rowid <= COALESCE(?, rowid) ORDER BY first"
        with self._lock, in_words(self.path):
            return [decode(conversation, blob) for (blob,) in self._database.execute(query, (conversation, until))]

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, in_words(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


def forget_file(path: Path) -> int:
    """`TraceStore.forget` of a file of any model; another kind of file is refused. Raises TraceStoreUnavailable."""
    with TraceStore(path) as store:
        return store.forget()


def _columns(model: TracedModel) -> tuple[str | int, ...]:
    return (model.name, model.fingerprint, *model.shape.to_dict().values())
