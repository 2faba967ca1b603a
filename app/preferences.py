"""What the person changes on the page: used at once and kept for the next start."""

from __future__ import annotations

import threading

from app.settings import Sampling, Settings, save_changes, settings_path


class Preferences:
    """The current sampling settings; every change goes to the settings file."""

    def __init__(self, settings: Settings) -> None:
        self._lock = threading.Lock()
        self.sampling = settings.sampling
        self.chats_at_once = settings.chats_at_once
        self.warning: str | None = None

    def set_sampling(self, sampling: Sampling) -> None:
        if sampling == self.sampling:
            return
        self.sampling = sampling
        self._save({"sampling": sampling.model_dump()})

    def set_budget(self, budget: str) -> None:
        self._save({"budget": budget})

    def set_model(self, model: str, budget: str) -> None:
        """A budget belongs to a model, so they change together."""
        self._save({"model": model, "budget": budget})

    def set_chats_at_once(self, chats: int) -> None:
        self.chats_at_once = chats
        self._save({"chats_at_once": chats})

    def set_record_routing(self, on: bool) -> None:
        self._save({"record_routing": on})

    def set_learn_from_chats(self, on: bool) -> None:
        self._save({"learn_from_chats": on})

    def _save(self, changes: dict) -> None:
        with self._lock:
            try:
                save_changes(changes)
                self.warning = None
            except (OSError, ValueError) as error:
                self.warning = (
                    f"Changed settings cannot be kept for the next start: {settings_path()} cannot be written "
                    f"({error}). Check free space and permissions there."
                )
