"""Loads the engine beside the page, so that the page is there at once and tells how far it is."""

from __future__ import annotations

import gc
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
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_ready(engine)` is told in the loading thread, before anybody else can use the engine; `on_closed()` when
        an engine was closed to make room for another, and must let go of it."""
        self.options = dict(options)
        self._on_ready, self._on_closed = on_ready, on_closed
        self._load = load or _load_engine
        self._engine: Engine | None = None
        self._state = LoadState(FIRST_STAGE)
        self._plan: MemoryPlan | None = None
        self._finished = threading.Event()
        self._closed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._leaving: Engine | None = None  # the engine that another one takes the place of
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
            if self._engine is None:
                self._start(changed_options)

    def switch(self, on_loaded: Callable[[], None] = lambda: None, **changed_options: Any) -> bool:
        """Closes the engine, if there is one, and loads anew with other options, in a thread of its own.

        `on_loaded()` is told there once the new engine is ready. False, and nothing happens, while one is loading.
        """
        with self._lock:
            old, self._engine = self._engine, None
            started = self._start(changed_options, old, on_loaded)
            if not started:
                self._engine = old
        return started

    def _start(
        self,
        changed_options: Mapping[str, Any],
        old: Engine | None = None,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> bool:
        if self._closed or (self._thread and self._thread.is_alive()):
            return False
        self.options.update(changed_options)
        self._finished.clear()
        self._started_at = time.monotonic()
        self._state, self._plan = LoadState(FIRST_STAGE), None
        self._leaving = old
        self._thread = threading.Thread(target=self._run, args=(on_loaded,), name="engine-loader", daemon=True)
        self._thread.start()
        return True

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

    def _run(self, on_loaded: Callable[[], None]) -> None:
        try:
            self._close_leaving()
            engine = self._load(**self.options, on_progress=self._on_progress, on_plan=self._on_plan)
            self._on_ready(engine)
        except EngineError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, the page has to say it
            traceback.print_exc(file=sys.stderr)
            self._fail(_unforeseen(error))
        else:
            self._keep(engine)
            on_loaded()

    def _close_leaving(self) -> None:
        """The old engine's memory is free before the new one plans its own."""
        leaving, self._leaving = self._leaving, None
        if leaving is None:
            return
        self._on_progress("Closing the model before", 0, 0)
        leaving.close()
        self._on_closed()
        del leaving
        gc.collect()  # modules refer to each other in circles

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
