"""The learning process, seen from the program: started, suspended and resumed, left, killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil

ROOT = Path(__file__).resolve().parents[2]
LEAVING_SECONDS = 5.0
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
LOG = "log.txt"


class Learner(Protocol):
    """What others use of the process. `learnt` and `refused` are what it said in the end, see `app.learning.child`;
    `done` of `total` is how far it has come."""

    done: int
    total: int
    learnt: dict | None
    refused: dict[str, str] | None

    @property
    def pid(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    @property
    def problem(self) -> str: ...
    def cpu_seconds(self) -> float: ...
    def suspend(self) -> None: ...
    def resume(self) -> None: ...
    def leave(self) -> None: ...
    def kill(self) -> None: ...


class LearningProcess:
    """One process and the thread that listens to it. All but the constructor is idempotent; not thread-safe."""

    def __init__(self, job: str, folder: Path) -> None:
        """`job` as made by `app.learning.child.job`; what goes wrong is written into `folder`. Raises OSError."""
        self.done = self.total = 0
        self.learnt: dict[str, Any] | None = None
        self.refused: dict[str, str] | None = None
        self.suspended = False
        self._log = folder / LOG
        with self._log.open("wb") as log:
            self._process = psutil.Popen(
                [sys.executable, "-P", "-m", "app.learning.child", job],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(),
                text=True,
            )
        self._listener = threading.Thread(target=self._listen, name="learning-listener", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def alive(self) -> bool:
        """False once it has ended and all it said is known."""
        return self._process.poll() is None or self._listener.is_alive()

    @property
    def problem(self) -> str:
        """Why it ended without a result."""
        with suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1]
        return f"it ended with code {self._process.returncode}"

    def cpu_seconds(self) -> float:
        """What it has cost so far."""
        total = 0.0
        for process in self._family():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def suspend(self) -> None:
        """Takes the processor from it until `resume`; its memory stays."""
        self._set_suspended(True)

    def resume(self) -> None:
        self._set_suspended(False)

    def leave(self) -> None:
        """Ends it so that it can be gone on with; kills it if that takes long."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self.resume()
        with suppress(psutil.TimeoutExpired):
            self._process.wait(LEAVING_SECONDS)
        self.kill()

    def kill(self) -> None:
        """At once; nothing that it leaves is half-written."""
        for process in self._family():
            with suppress(psutil.Error):
                process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()

    def _set_suspended(self, suspended: bool) -> None:
        if self.suspended == suspended:
            return
        self.suspended = suspended
        for process in self._family():
            with suppress(psutil.Error):
                process.suspend() if suspended else process.resume()

    def _family(self) -> list[psutil.Process]:
        """On Windows the interpreter of a virtual environment only starts the real one."""
        if os.name != "nt":
            return [self._process]
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.Error:
            return [self._process]

    def _take_in(self, said: dict[str, Any]) -> None:
        self.done, self.total = said.get("done", self.done), said.get("total", self.total)
        self.learnt, self.refused = said.get("learnt", self.learnt), said.get("refused", self.refused)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):  # a line of which only half was written
                said = json.loads(line)
                self._take_in(said if isinstance(said, dict) else {})


def _environment() -> dict[str, str]:
    """One thread, and no graphics card: its memory is the model's."""
    found = os.environ | dict.fromkeys(ONE_THREAD, "1")
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    return found | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
