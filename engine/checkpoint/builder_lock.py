"""Only one process at a time builds into a folder; a killed one loses the lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import EngineError

POLL_SECONDS = 0.5


@contextmanager
def builder_lock(
    file: Path, waiting: str, report: Callable[[str, int, int], object], unwritable: Callable[[OSError], EngineError]
) -> Iterator[None]:
    """Held while inside; makes the file's folder. Reports `waiting` where another process holds it.

    Raises `unwritable(error)` where the folder cannot be written.
    """
    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report(waiting, 0, 0)
            lock.acquire(poll_interval=POLL_SECONDS)
    except OSError as error:
        raise unwritable(error) from error
    try:
        yield
    finally:
        lock.release()
