"""The one timer of the page: header, panels, loading progress, and the news of other pages."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from app.machine_memory import near_memory
from app.program import Program
from app.ui import html
from app.ui.budget import Budget
from app.ui.layout import Parts
from app.ui.panels import panel_data
from app.ui.tabs import Tabs


class LivePanels:
    """Reads snapshots once a second; sends only what changed since this page's last reading."""

    def __init__(self, program: Program, parts: Parts, budget: Budget, tabs: Tabs) -> None:
        self._program = program
        self._parts = parts
        self._budget = budget
        self._tabs = tabs

    def wire(self, demo: gr.Blocks) -> None:
        """Connects the timer; must run inside the `gr.Blocks`."""
        p = self._parts
        outputs = [
            p.header, p.panels, p.reasons, p.chat.load_notice, p.chat.load_again, p.chat.warnings, p.chat.stamp,
            p.budget.slider, p.budget.label, p.budget.marks, p.budget.auto,
        ]  # fmt: skip
        inputs = [p.chat.chat_id, p.chat.stamp]
        for event in (demo.load, p.timer.tick):
            event(self.tick, inputs, outputs, queue=False, show_progress="hidden")

    def tick(self, chat_id: str, stamp: str, request: gr.Request) -> dict[Any, Any]:
        """Updates of everything that moves."""
        session = request.session_hash
        updates: dict[Any, Any] = {self._parts.header: gr.skip()}
        for name, component, value in self._readings():
            if self._tabs[session].changed(name, str(value)):
                updates[component] = value
        updates |= self._budget.update(session)
        now = self._program.answers.stamp(chat_id) if chat_id else stamp
        if stamp and now != stamp:
            updates[self._parts.chat.stamp] = now
        return updates

    def _readings(self) -> list[tuple[str, Any, Any]]:
        p, program = self._parts, self._program
        state, engine = program.host.state, program.host.engine
        readings = [
            ("load_notice", p.chat.load_notice, "" if state.ready else html.load_notice(state)),
            ("load_again", p.chat.load_again, gr.update(visible=state.error is not None)),
            ("warnings", p.chat.warnings, "".join(html.notice("warning", text) for text in program.warnings)),
        ]
        if engine is None:
            pill, kind = ("Failed", "error") if state.error else (state.words, "wait")
            readings.append(("header", p.header, html.header(program.model_name, self._options(), pill, kind)))
            return readings
        snapshot = engine.snapshot()
        memory = near_memory(getattr(engine, "device", "cpu"))
        data = panel_data(snapshot, program.history.samples(), memory)
        readings += [
            ("header", p.header, self._header(snapshot)),
            ("panels", p.panels, json.dumps(data, separators=(",", ":"))),
            ("reasons", p.reasons, html.reasons(snapshot.plan, (snapshot.fast_path, *snapshot.notes))),
        ]
        return readings

    def _header(self, snapshot: Any) -> str:
        live = self._program.answers.current
        pill, kind = ("Answering", "busy") if live else ("Ready", "ready")
        details = f"{snapshot.architecture} · policy {snapshot.policy} · link {snapshot.link}"
        return html.header(snapshot.model_name, details, pill, kind)

    def _options(self) -> str:
        return f"budget {self._program.host.options.get('budget', 'auto')}"
