"""Another model for the page: what it would need, its download, and the change to it; one desk for all open pages."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from app.answers import Answers
from app.engine_host import EngineHost
from app.model_offer import ModelOffer, make_offer
from app.preferences import Preferences
from app.settings import Settings
from engine.errors import Cancelled, DownloadBusy, EngineBusy, EngineError, HubUnreachable, ModelNotFound

if TYPE_CHECKING:
    from engine import Engine

AUTO = "auto"  # the budget of a model that was not loaded before: no number fits two models
JOIN_SECONDS = 15.0


@dataclass(frozen=True)
class DownloadState:
    """How far the newest download is, in bytes."""

    name: str
    done: int = 0
    total: int = 0
    running: bool = True
    cancelled: bool = False
    error: EngineError | None = None

    @property
    def complete(self) -> bool:
        return not (self.running or self.cancelled or self.error)


class ModelDesk:
    """At most one download at a time, in a thread of its own, whatever the browser does."""

    def __init__(self, settings: Settings, host: EngineHost, answers: Answers, preferences: Preferences) -> None:
        self._settings, self._host, self._answers, self._preferences = settings, host, answers, preferences
        self._lock = threading.Lock()
        self._download: DownloadState | None = None
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        self._previous: str | None = None

    @property
    def download(self) -> DownloadState | None:
        """The download in progress, or how the last one ended; None before the first."""
        return self._download

    @property
    def previous(self) -> str | None:
        """The model that was loaded before the one that failed to load; None while there is nothing to go back to."""
        return self._previous if self._host.state.error else None

    @property
    def missing(self) -> str | None:
        """The model that was asked for and is not on this machine, if it may be on the hub."""
        if not isinstance(self._host.state.error, ModelNotFound):
            return None  # and nothing heavy is imported for a page while the engine loads
        from engine.checkpoint.catalog import is_repository_name

        wanted = str(self._host.options.get("model"))
        return wanted if is_repository_name(wanted) else None

    @property
    def stamp(self) -> str:
        """Changes whenever a page has to show its choice anew."""
        download, state = self._download, self._host.state
        progress = f"{download.name} {download.running} {download.cancelled} {download.error}" if download else ""
        return f"{self._host.options.get('model')} {state.ready} {state.error} {progress}"

    def offer(self, name: str) -> ModelOffer:
        """What `name` would be like here, in place of the model that is loaded. Takes seconds; raises EngineErrors."""
        options = {**self._host.options, "model": name, "budget": AUTO}
        settings = self._settings.model_copy(update=options)
        return make_offer(name, settings, lambda stage, done, total: None, _held_bytes(self._host.engine))

    def start_download(self, offer: ModelOffer) -> None:
        """Begins to fetch what the offer lacks. Raises DiskFull, DownloadBusy."""
        plan = offer.estimate.download
        if plan is None:
            raise HubUnreachable(f"{offer.name} cannot be fetched now.", "Look it up again when there is a network.")
        plan.require_space()
        with self._lock:
            if self._download is not None and self._download.running:
                raise DownloadBusy(f"{self._download.name} is being downloaded.", "Wait for it, or cancel it.")
            self._cancel.clear()
            self._download = DownloadState(offer.name, plan.here_bytes, plan.total_bytes)
            self._thread = threading.Thread(target=self._fetch, args=(plan,), name="model-download", daemon=True)
            self._thread.start()

    def cancel_download(self) -> None:
        """Ends the download within moments; what arrived is kept."""
        self._cancel.set()

    def load(self, name: str) -> None:
        """Closes the model in use and loads `name`; begins at once, the host tells how far it is.

        The choice is kept for the next start once it is loaded. Raises EngineBusy while an answer is being written or
        a model loaded.
        """
        self._answers.check_idle()
        if self._host.engine is not None:
            self._previous = str(self._host.options.get("model"))
        if not self._host.switch(lambda: self._preferences.set_model(name, AUTO), model=name, budget=AUTO):
            raise EngineBusy("A model is being loaded.", "Wait until it is ready.")

    def load_previous(self) -> None:
        """Back to the model that was loaded before the one that failed. Raises what `load` raises."""
        if self._previous is not None:
            self.load(self._previous)

    def close(self) -> None:
        """Ends the download in progress."""
        self._cancel.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)

    def _fetch(self, plan: Any) -> None:
        from engine.checkpoint.hub.download import fetch_all

        state = self._download
        assert state is not None
        end: dict[str, Any] = {}
        try:
            fetch_all(plan, self._on_progress, self._cancel.is_set)
        except Cancelled:
            end = {"cancelled": True}
        except EngineError as error:
            end = {"error": error}
        except Exception as error:  # whatever it is, the page has to say it
            traceback.print_exc(file=sys.stderr)
            end = {"error": HubUnreachable(f"The download stopped: {error}.", "Try again; the terminal shows more.")}
        self._download = replace(self._download or state, running=False, **end)

    def _on_progress(self, stage: str, done: int, total: int) -> None:
        assert self._download is not None
        self._download = replace(self._download, done=done, total=total)


def local_names() -> list[str]:
    """Models of this machine that can be chosen."""
    from engine.checkpoint.catalog import list_models

    return [model.name for model in list_models()]


def _held_bytes(engine: Engine | None) -> int:
    """What loading another model gives back."""
    if engine is None:
        return 0
    snapshot = engine.snapshot()
    if not str(engine.device).startswith("cpu"):  # a card's memory is taken whole, used or not
        return snapshot.plan.near_bytes_total - snapshot.plan.near_bytes_workspace
    return snapshot.plan.near_bytes_dense + int((snapshot.residency > 0).sum()) * snapshot.plan.slot_bytes
