"""The form of a file of recorded routing: SQLite tables, their version, and its errors in words."""

from __future__ import annotations

import os
import sqlite3
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import TraceStoreUnavailable

FORMAT = 1
APPLICATION_ID = 0x45465452  # "EFTR"
BUSY_SECONDS = 5.0  # another process may be forgetting
_TABLES = """
    CREATE TABLE model (name TEXT, fingerprint TEXT, layers INTEGER, experts INTEGER, top_k INTEGER,
        vocabulary INTEGER);
    CREATE TABLE conversations (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, created REAL NOT NULL);
    CREATE TABLE pieces (
        conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        first INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        arrays BLOB NOT NULL,
        PRIMARY KEY (conversation, first)
    );
"""


def connect(path: Path, create: bool) -> sqlite3.Connection:
    """A connection for several threads; without `create` a missing file is a FileNotFoundError."""
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.is_file():
        raise FileNotFoundError("there is no such file")
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA secure_delete = ON")  # forgotten means gone
    database.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing; a power cut, the last pieces
    return database


def is_empty(database: sqlite3.Connection) -> bool:
    """Whether the file is new."""
    return database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0


def give_form(database: sqlite3.Connection) -> None:
    """Makes the tables, all or nothing."""
    database.execute("PRAGMA auto_vacuum = INCREMENTAL")
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(
        f"BEGIN IMMEDIATE; {_TABLES} PRAGMA application_id = {APPLICATION_ID};PRAGMA user_version = {FORMAT}; COMMIT;"
    )


def check_form(database: sqlite3.Connection, path: Path) -> None:
    """Raises TraceStoreUnavailable for a file that is none of ours, or newer than this program."""
    application = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise TraceStoreUnavailable(f"{path} is not a file of recorded routing.", "Give another file.")
    if version > FORMAT:
        raise TraceStoreUnavailable(
            f"{path} was written by a newer version of this program (format {version}, this one knows {FORMAT}).",
            "Update the program, or give another file.",
        )


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Errors of the database and of the disk become TraceStoreUnavailable."""
    try:
        yield
    except (sqlite3.Error, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise TraceStoreUnavailable(
            f"The recorded routing in {path} cannot be used: {error}.",
            "Check that the file is one of recorded routing, and the free space and permissions there.",
        ) from error


def file_bytes(path: Path) -> int:
    """The file with its log."""
    files = [path, path.with_name(path.name + "-wal")]
    return sum(os.path.getsize(file) for file in files if file.exists())
