"""Loads the engine beside the page, so that the page is there at once and tells how far it is."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import EngineClosed, EngineError

if TYPE_CHECKING:
    from engine import Engine
    from engine.hardware.memory_plan import MemoryPlan

Loader = Callable[..., "Engine"]
FIRST_STAGE = "Starting the engine"


class LoadFailed(EngineError):
    """Loading ended with an error nobody foresaw."""


@dataclass(frozen=True)
class LoadState:
    """How far loading is. `done` of `total` in the units of the stage; total 0 where they are unknown."""

    stage: str
    done: int = 0
    total: int = 0
    ready: bool = False
    error: EngineError | None = None
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """Such as "Reading dense weights, 45 %"."""
        if self.ready:
            return "Ready"
        if self.error:
            return self.error.cause
        share = f", {100 * self.done // self.total} %" if self.total else ""
        return f"{self.stage}{share}"


class EngineHost:
    """Owns the engine and the thread that loads it."""

    def __init__(
        self,
        options: Mapping[str, Any],
        load: Loader | None = None,
        on_ready: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        """`on_ready(engine)` is told in the loading thread, before anybody else can use the engine."""
        self.options = dict(options)
        self._on_ready = on_ready
        self._load = load or _load_engine
        self._engine: Engine | None = None
        self._state = LoadState(FIRST_STAGE)
        self._plan: MemoryPlan | None = None
        self._finished = threading.Event()
        self._closed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._started_at = time.monotonic()

    @property
    def engine(self) -> Engine | None:
        """The engine once it is ready."""
        return self._engine

    @property
    def plan(self) -> MemoryPlan | None:
        """The plan in force, or, before the engine is ready, the one it is being loaded with; None before that."""
        engine = self._engine
        return engine.plan if engine else self._plan

    @property
    def state(self) -> LoadState:
        return self._state

    def start(self, **changed_options: Any) -> None:
        """Loads in a thread of its own. After a failure it may be called again, with other options."""
        with self._lock:
            if self._engine is not None or self._closed or (self._thread and self._thread.is_alive()):
                return
            self.options.update(changed_options)
            self._finished.clear()
            self._started_at = time.monotonic()
            self._state, self._plan = LoadState(FIRST_STAGE), None
            self._thread = threading.Thread(target=self._run, name="engine-loader", daemon=True)
            self._thread.start()

    def wait(self, timeout: float | None = None) -> Engine | None:
        """The engine, or None if it is not ready after `timeout` seconds. Raises what loading raised."""
        self._finished.wait(timeout)
        if self._state.error:
            raise self._state.error
        return self._engine

    def close(self) -> None:
        """Closes the engine; one that is still loading is closed as soon as it is there."""
        with self._lock:
            self._closed = True
            engine, self._engine = self._engine, None
        self._finished.set()
        if engine is not None:
            engine.close()

    def _run(self) -> None:
        try:
            engine = self._load(**self.options, on_progress=self._on_progress, on_plan=self._on_plan)
            self._on_ready(engine)
        except EngineError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, the page has to say it
            traceback.print_exc(file=sys.stderr)
            self._fail(_unforeseen(error))
        else:
            self._keep(engine)

    def _keep(self, engine: Engine) -> None:
        with self._lock:
            if not self._closed:
                self._engine = engine
                self._state = LoadState("Ready", ready=True, seconds=time.monotonic() - self._started_at)
        if self._closed:
            engine.close()
        self._finished.set()

    def _fail(self, error: EngineError) -> None:
        self._state = LoadState("Failed", error=error, seconds=time.monotonic() - self._started_at)
        self._finished.set()

    def _on_plan(self, plan: MemoryPlan) -> None:
        self._plan = plan

    def _on_progress(self, stage: str, done: int, total: int) -> None:
        if self._closed:
            raise EngineClosed("The program is ending.", "Start it again to load the model.")
        self._state = LoadState(stage, done, total, seconds=time.monotonic() - self._started_at)


def _load_engine(**options: Any) -> Engine:
    from engine import Engine  # torch and transformers take seconds: not before the page needs them

    return Engine.load(**options)


def _unforeseen(error: Exception) -> LoadFailed:
    return LoadFailed(
        f"Loading the model stopped with an unforeseen error: {type(error).__name__}: {error}.",
        "The terminal shows where; try another model, or report it with that text.",
    )
