"""Routing recorded from the person's own chats, if they ask for it: where it lies, on and off, forgotten together with
what was learnt from it."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.learning.run import forget_runs, runs_dir
from app.preferences import Preferences
from app.settings import Settings
from engine.errors import EngineError, TraceStoreUnavailable, UnsupportedModel
from engine.paths import data_dir
from engine.routing.predictor_files import learnt_dir

if TYPE_CHECKING:
    from engine import Engine
    from engine.routing.traces.trace_store import TraceStore, TraceSummary
    from engine.routing.traces.traced_model import TracedModel

MEGABYTE = 1_000_000


def records_dir() -> Path:
    """Folder of the files, one for each model. Not created here."""
    return data_dir() / "routing"


def record_path(model: TracedModel) -> Path:
    """The file of one model: the same name with other weights has another."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", model.name).strip("-.") or "model"
    return records_dir() / f"{name}-{model.fingerprint[:8]}.sqlite"


def recorded_files() -> list[Path]:
    """Every file there is."""
    return sorted(records_dir().glob("*.sqlite"))


def recorded() -> list[TraceSummary]:
    """What each file holds. Raises TraceStoreUnavailable."""
    from engine.routing.traces.trace_store import TraceStore

    summaries = []
    for path in recorded_files():
        with TraceStore(path) as store:
            summaries.append(store.summary())
    return summaries


def forget_all() -> int:
    """Empties every file and deletes what was learnt from them, ending whoever is learning, of any program; returns the
    bytes freed. Raises the first TraceStoreUnavailable, after trying all.
    """
    from engine.routing.traces.trace_store import forget_file

    freed, errors = 0, []
    for path in recorded_files():
        try:
            freed += forget_file(path)
        except EngineError as error:
            errors.append(error)
    try:  # after the files: who begins to learn only now finds nothing there
        freed += forget_learnt()
    except TraceStoreUnavailable as error:
        errors.append(error)
    if errors:
        raise errors[0]
    return freed


def forget(file: Path) -> int:
    """Empties one file; where it is of the person's chats, also deletes what was learnt from it.

    Returns the bytes freed. Raises TraceStoreUnavailable.
    """
    from engine.routing.traces.trace_store import TraceStore

    with TraceStore(file) as store:
        freed, model = store.forget(), store.model
    is_of_chats = file.resolve().parent == records_dir().resolve()
    return freed + (forget_learnt(model.fingerprint) if is_of_chats and model else 0)


def forget_learnt(model: str = "*") -> int:
    """Deletes the predictor that was learnt for this model (a fingerprint), or every one, and all that a run of
    learning leaves; returns the bytes freed. Raises TraceStoreUnavailable.
    """
    try:
        learnt = list(learnt_dir().glob(f"{model}.*"))
        size = sum(file.stat().st_size for file in (*learnt, *runs_dir().glob(f"{model}/*")))
        forget_runs(model)
        for file in learnt:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise TraceStoreUnavailable(
            f"What was learnt from recorded routing cannot be deleted: {error}.",
            f"Delete {runs_dir()} and {learnt_dir()} yourself.",
        ) from error
    return size


@contextmanager
def recorded_if_asked(engine: Engine, settings: Settings) -> Iterator[None]:
    """For the terminal: what goes wrong with recording is said on stderr, and the chat goes on."""
    records = RoutingRecords(settings)
    records.attach(engine)
    try:
        yield
    finally:
        with suppress(EngineError):
            engine.record_to(None)
        if records.warning:
            print(records.warning, file=sys.stderr)
        records.close()


@dataclass(frozen=True)
class RecordedModel:
    """What is being recorded: the model's fingerprint, and the file."""

    fingerprint: str
    path: Path


class RoutingRecords:
    """Whether the engine in use records, and into which file. Any thread may ask."""

    def __init__(self, settings: Settings, preferences: Preferences | None = None) -> None:
        self.limit_megabytes = settings.routing_limit_megabytes
        self._on = settings.record_routing
        self._hidden = settings.learn_from_chats
        self._preferences = preferences
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._store: TraceStore | None = None
        self._warning: str | None = None

    @property
    def on(self) -> bool:
        """Whether the person wants recording; `warning` says where it is not possible."""
        return self._on

    @property
    def warning(self) -> str | None:
        """Why nothing is recorded although it should be, in words."""
        return self._warning or (self._engine.recording_problem if self._on and self._engine else None)

    @property
    def recording(self) -> RecordedModel | None:
        """What is being recorded, if anything."""
        store = self._store
        return RecordedModel(store.model.fingerprint, store.path) if store is not None and store.model else None

    def mark(self) -> int:
        """How far the recording has come, see `TraceStore.mark`. Raises TraceStoreUnavailable."""
        store = self._store
        return 0 if store is None else store.mark()

    def tokens(self, after: int = 0) -> dict[str, int]:
        """Of each conversation, since the mark `after`. Raises TraceStoreUnavailable."""
        store = self._store
        return {} if store is None else store.tokens_by_conversation(after)

    def attach(self, engine: Engine) -> None:
        """This engine answers from now on."""
        with self._lock:
            self._engine = engine
            if self._on:
                self._begin()

    def switch(self, on: bool) -> None:
        """Acts at once, in mid-answer too, and is kept for the next start."""
        with self._lock:
            self._on = on
            if self._preferences is not None:
                self._preferences.set_record_routing(on)
            self._end()
            if on:
                self._begin()

    def switch_hidden(self, on: bool) -> None:
        """Whether each token's final hidden state is recorded too: predictors learn better with it."""
        with self._lock:
            changed, self._hidden = self._hidden != on, on
            if changed and self._on:
                self._end()
                self._begin()

    def forget(self) -> int:
        """Deletes all that was ever recorded, what is being recorded, and what was learnt; returns the bytes freed.

        Recording goes on afterwards, if it is on. Raises TraceStoreUnavailable.
        """
        with self._lock:
            self._end()
            try:
                return forget_all()
            finally:
                if self._on:
                    self._begin()

    def close(self) -> None:
        """After the engine is closed, or no longer records."""
        with self._lock:
            self._engine = None
            if self._store is not None:
                self._store.close()
                self._store = None

    def _begin(self) -> None:
        from engine.routing.traces.trace_store import TraceStore

        if self._engine is None:
            return
        self._warning = None
        try:
            model = self._engine.traced_model
            self._store = TraceStore(record_path(model), model, self.limit_megabytes * MEGABYTE)
            self._record_to(self._engine, self._store)
        except EngineError as error:
            self._warning = f"Routing is not recorded. {error.cause} {error.remedy}"

    def _record_to(self, engine: Engine, store: TraceStore) -> None:
        try:
            engine.record_to(store, hidden=self._hidden, taps=False)
        except UnsupportedModel:
            if not self._hidden:
                raise
            engine.record_to(store)

    def _end(self) -> None:
        self._warning = None
        if self._store is None or self._engine is None:
            return
        self._engine.record_to(None)
        self._store.close()
        self._store = None
