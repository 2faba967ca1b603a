"""The one timer of the page: header, panels, loading progress, and the news of other pages.

Few outputs on purpose: Gradio rebuilds each output component of each update, also of one that is skipped, and that
time is taken from the model. So everything that moves is one JSON that the page's script draws, and two stamps
tell the page when its chat, or its slider and its choice of models, have to be shown anew.
"""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from app.answers import chat_of
from app.machine_memory import NearMemory, emulated_memory, near_memory
from app.program import Program
from app.ui import html
from app.ui.budget import Budget
from app.ui.layout import Parts
from app.ui.learning_view import learning_words
from app.ui.panels import memory_bars, panel_data
from app.ui.tabs import Tabs
from app.ui.what_if_view import what_if_data
from app.what_if import WhatIf


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
        outputs = [p.panels, p.chat.stamp, p.budget.stamp]
        for event in (demo.load, p.timer.tick):
            event(self.tick, p.chat.stamp, outputs, queue=False, show_progress="hidden")

    def tick(self, shown_stamp: str, request: gr.Request) -> tuple[Any, Any, Any]:
        """What changed of: everything that moves, the chat of this page, the slider or the choice of models."""
        tab = self._tabs[request.session_hash]
        panels = json.dumps(self.reading(), separators=(",", ":"))
        budget = f"{self._budget.stamp()} {self._program.desk.stamp}"
        chat = shown_stamp
        if shown_stamp and tab.shows(chat_of(shown_stamp)):
            chat = self._program.answers.stamp(chat_of(shown_stamp))
        return (
            panels if tab.changed("panels", panels) else gr.skip(),
            chat if chat != shown_stamp else gr.skip(),
            budget if tab.changed("budget", budget) else gr.skip(),
        )

    def reading(self) -> dict[str, Any]:
        """HTML by the id of its place, and the data of the panels once the engine is ready, of one before."""
        program = self._program
        state, engine = program.host.state, program.host.engine
        warnings = "".join(html.notice("warning", text) for text in program.warnings)
        download = html.download_notice(program.desk.download)
        if engine is None:
            pill, kind = ("Failed", "error") if state.error else (state.words, "wait")
            budget = f"budget {program.host.options.get('budget', 'auto')}"
            header = html.header(program.model_name, budget, pill, kind)
            words = {"header": header, "load-notice": html.load_notice(state), "warnings": warnings}
            return {"words": words | {"download-notice": download}} | self._planned()
        snapshot = engine.snapshot()
        memory = _memory_of(snapshot, engine.device)
        return {
            "words": {
                "header": self._header(snapshot),
                "load-notice": "",
                "warnings": warnings,
                "learning-state": learning_words(program.learning),
                "download-notice": download,
                "reasons": html.reasons(snapshot.plan, (snapshot.fast_path, *snapshot.notes)),
            },
            "panels": panel_data(snapshot, program.history.samples(), memory)
            | {"what_if": what_if_data(self._what_if(snapshot), snapshot.plan, self._budget.auto_percent())},
        }

    def _what_if(self, snapshot: Any) -> WhatIf | None:
        engine = self._program.host.engine
        return self._program.what_if.of(engine, snapshot.busy) if engine else None

    def _planned(self) -> dict[str, Any]:
        """What will be in memory, while the model is being loaded."""
        plan = self._program.host.plan
        if plan is None or self._program.host.state.error:
            return {}
        from engine.cache.links.emulated import emulated_card

        card = emulated_card(self._program.host.options.get("link", "auto"))
        memory = near_memory("cpu") if card is None else emulated_memory(card, plan.near_bytes_total)
        return {"memory": memory_bars(plan, memory)}

    def _header(self, snapshot: Any) -> str:
        busy = bool(self._program.answers.in_progress)
        pill, kind = (_answering(snapshot), "busy") if busy else ("Ready", "ready")
        details = f"{snapshot.architecture} · policy {snapshot.policy} · link {snapshot.link}"
        return html.header(snapshot.model_name, details, pill, kind)


def _answering(snapshot: Any) -> str:
    """How many answers are written, and how many wait."""
    written = "Answering" if snapshot.running < 2 else f"Answering {snapshot.running}"
    return f"{written}, {snapshot.waiting} waiting" if snapshot.waiting else written


def _memory_of(snapshot: Any, device: str) -> NearMemory:
    if snapshot.emulation is None:
        return near_memory(device)
    return emulated_memory(snapshot.emulation.card, snapshot.plan.near_bytes_total)
