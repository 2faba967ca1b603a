"""What each open page was last shown, so that only changes are sent."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from app.answers import chat_of

MESSAGES_SHOWN = 40
TABS_REMEMBERED = 64


@dataclass
class Tab:
    """One open page. `follower` is the newest stream of the page; older ones end when it changes."""

    sent: dict[str, str] = field(default_factory=dict)
    shown_stamp: str = ""
    follower: int = 0
    messages_shown: int = MESSAGES_SHOWN

    def shows(self, chat_id: str) -> bool:
        """Whether the page was last sent this chat: news of another one come too late. True where nothing is known."""
        return not self.shown_stamp or chat_of(self.shown_stamp) == chat_id

    def changed(self, name: str, value: str) -> bool:
        """Whether `value` differs from what was sent under `name` last; remembers it."""
        if self.sent.get(name) == value:
            return False
        self.sent[name] = value
        return True


class Tabs:
    """Open pages by Gradio's session hash; the least recently used are forgotten."""

    def __init__(self) -> None:
        self._tabs: OrderedDict[str, Tab] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, session: str | None) -> Tab:
        key = session or ""
        with self._lock:
            tab = self._tabs.setdefault(key, Tab())
            self._tabs.move_to_end(key)
            while len(self._tabs) > TABS_REMEMBERED:
                self._tabs.popitem(last=False)
            return tab
