"""The parts of the running program, started and stopped together."""

from __future__ import annotations

from app.answers import Answers
from app.chats import ChatStore
from app.engine_host import EngineHost, Loader
from app.learning.learning import Learning
from app.model_desk import ModelDesk
from app.panel_history import PanelHistory
from app.preferences import Preferences
from app.routing_records import RoutingRecords
from app.settings import Settings, beside_one
from app.what_if import WhatIfCurve
from engine.errors import EngineClosed
from engine.paths import data_dir


class Program:
    """Engine, chats, answers and preferences behind the page."""

    def __init__(self, settings: Settings, load: Loader | None = None) -> None:
        self.settings = settings
        self.preferences = Preferences(settings)
        self.routing = RoutingRecords(settings, self.preferences)
        options = settings.engine_options() | {"batch_size": beside_one(settings.chats_at_once)}
        self.host = EngineHost(options, load, self.routing.attach, self.routing.close)
        self.store = ChatStore.open_or_memory(data_dir() / "chats.sqlite")
        self.answers = Answers(self.host, self.store)
        self.desk = ModelDesk(settings, self.host, self.answers, self.preferences)
        self.history = PanelHistory(self.host)
        self.learning = Learning(self.routing, settings, self.preferences, self._is_busy)
        self.what_if = WhatIfCurve()

    def start(self) -> None:
        """Begins loading the model; returns at once."""
        self.host.start()
        self.history.start()
        self.learning.start()

    def close(self) -> None:
        """Saves the answers in progress and gives everything back."""
        self.learning.close()
        self.desk.close()
        self.answers.close()
        self.history.close()
        self.host.close()
        self.routing.close()
        self.store.close()

    def set_chats_at_once(self, chats: int) -> None:
        """So many are answered together, 0 for as many as go well, whenever a model is loaded from now on."""
        self.preferences.set_chats_at_once(chats)
        self.host.options["batch_size"] = beside_one(chats)

    @property
    def model_name(self) -> str:
        engine = self.host.engine
        return engine.model_name if engine else str(self.host.options.get("model", self.settings.model))

    @property
    def warnings(self) -> list[str]:
        """What the person should know and can act on."""
        return [text for text in (self.store.warning, self.preferences.warning, self.routing.warning) if text]

    def _is_busy(self) -> bool:
        """Whether the model is asked something, from here or past the chats, or is not ready."""
        engine = self.host.engine
        try:
            return bool(self.answers.in_progress) or engine is None or engine.snapshot().busy
        except EngineClosed:  # the program is ending, or changes its model
            return True
