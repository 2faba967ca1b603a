"""The benchmark's side: starts a contender in a process of its own, talks to it, ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from engine.errors import EngineError
from engine.lab.memory_cage import MemoryCage

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
LAST_WORDS_CHARACTERS = 600


def surroundings(threads: int) -> dict[str, str]:
    """Environment of a contender: this program importable, so many threads, no network."""
    importable = {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    return os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | importable


def last_words(errors: str) -> str:
    """The end of what a process wrote to stderr."""
    return errors[-LAST_WORDS_CHARACTERS:].strip()


class ContenderFailed(EngineError):
    """A contender could not load, answer, or stay alive."""


class ContenderProcess:
    """Context manager around `python -m MODULE`; `cage` limits its memory from before it loads anything."""

    def __init__(self, module: str, threads: int, cage: MemoryCage | None = None) -> None:
        self._module = module
        self.cage = cage
        self._words = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env=surroundings(threads),
        )
        if cage is not None:
            cage.add(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, **settings: Any) -> dict[str, Any]:
        """Loads the model; returns the contender's facts. Raises ContenderFailed."""
        return self._ask({"do": "load", **settings})

    def answer(self, ids: list[int], new_tokens: int, **settings: Any) -> dict[str, Any]:
        """Greedy answer; see `Contender.answer`. Raises ContenderFailed."""
        return self._ask({"do": "answer", "ids": ids, "new_tokens": new_tokens, **settings})

    def close(self) -> None:
        """Ends the process and removes its cage. Can be called twice."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._words):
            if stream is not None:
                with suppress(BrokenPipeError):  # a request that it no longer read
                    stream.close()
        if self.cage is not None:
            self.cage.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._ended()
        reply = json.loads(line)
        if "error" in reply:
            raise ContenderFailed(f"{self._module}: {reply['error']['cause']}", reply["error"]["remedy"])
        return reply

    def _ended(self) -> ContenderFailed:
        code = self._process.wait()
        self._words.seek(0)
        words = last_words(self._words.read())
        reason = "it was killed, most likely for memory" if code == -9 else f"exit code {code}"
        return ContenderFailed(
            f"{self._module} ended before it answered ({reason}). {words}".strip(),
            "Give a higher --memory-limit or free memory." if code == -9 else "Leave this contender out.",
        )
