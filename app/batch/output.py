"""The output file of a batch: whole lines in the order of the input, however often the job is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from engine.errors import InvalidSetting

SYNC_LINES = 16  # so many may be computed again after a power cut; a killed process loses none


class BatchOutput:
    """Appends lines; `write` takes them in any order and keeps those that come too early. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidSetting where the file cannot be written, or holds something else than answers."""
        self.path = path
        self.written = 0
        self.failed = 0
        self._early: dict[int, bytes] = {}
        self._lock = FileLock(f"{path}.lock")
        self._file: BinaryIO | None = None

    def __enter__(self) -> BatchOutput:
        with _in_words(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
            except Timeout as error:
                raise InvalidSetting(
                    f"Another job is writing {self.path}.", "Wait for it, or write to another file."
                ) from error
            try:
                self._file = self.path.open("r+b" if self.path.exists() else "w+b")
                self._cut_torn_line()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def custom_ids(self) -> Iterator[str | None]:
        """Of the lines that are there. Raises InvalidSetting for a line that is no answer."""
        with _in_words(self.path), self.path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    answer = json.loads(line)
                    custom_id, self.failed = answer["custom_id"], self.failed + (answer["error"] is not None)
                except (ValueError, KeyError, TypeError) as error:
                    raise InvalidSetting(
                        f"Line {number + 1} of {self.path} is not the answer to a batch's line.",
                        "Name another output file; this one is left as it is.",
                    ) from error
                self.written = number + 1
                yield custom_id

    def write(self, number: int, answer: dict[str, Any]) -> None:
        """The answer to line `number`; a second is left out. Raises InvalidSetting where the disk does not take it."""
        if number < self.written or number in self._early:
            return
        self._early[number] = json.dumps(answer, ensure_ascii=False).encode() + b"\n"
        self.failed += answer["error"] is not None
        while self.written in self._early:
            line = self._early.pop(self.written)
            assert self._file is not None
            with _in_words(self.path):
                self._file.write(line)
                self._file.flush()
                self.written += 1
                if not self.written % SYNC_LINES:
                    os.fsync(self._file.fileno())

    def _cut_torn_line(self) -> None:
        """A killed process may have left half a line."""
        assert self._file is not None
        end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(end - 65536, 0)
            self._file.seek(start)
            place = self._file.read(end - start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
        self._file.truncate(end)
        self._file.seek(end)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidSetting(
            f"{path} cannot be written: {error.strerror or error}.",
            "Free some room or choose another place; the same command goes on from what is written.",
        ) from error
