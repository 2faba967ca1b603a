"""Choosing another model: what it would need here before anything is fetched, its download, the change to it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.model_desk import ModelDesk, local_names
from app.model_offer import ModelOffer
from app.program import Program
from app.ui import html
from app.ui.layout import ModelParts
from app.ui.tabs import Tabs
from engine.errors import EngineError

Updates = dict[Any, Any]


class ModelPicker:
    """Handlers of the place where a model is chosen. What is shown is the page's own; the download is everybody's."""

    def __init__(self, program: Program, parts: ModelParts, tabs: Tabs) -> None:
        self._program, self._parts, self._tabs = program, parts, tabs
        self._desk: ModelDesk = program.desk

    def wire(self, stamp: gr.Textbox) -> None:
        """Connects it to its parts and to the page's `stamp`; must run inside the `gr.Blocks`."""
        p = self._parts
        view = [p.accordion, p.name, p.chosen, p.offer, p.download, p.cancel, p.load, p.go_back]
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        p.accordion.expand(self.list_local, None, p.local, **quiet)
        asked: dict[str, Any] = {"concurrency_limit": None, "show_progress": "minimal", "show_progress_on": p.offer}
        p.local.input(self.look, p.local, view, **asked)
        gr.on([p.name.submit, p.look.click], self.look, p.name, view, **asked)
        p.download.click(self.download, p.chosen, view, **asked)
        p.cancel.click(self._desk.cancel_download, None, None, **quiet)
        p.load.click(self.load, p.chosen, view, **quiet)
        p.go_back.click(self.go_back, p.chosen, view, **quiet)
        stamp.change(self.refresh, p.chosen, view, trigger_mode="always_last", **asked)

    def list_local(self) -> Any:
        """The models of this machine; none is chosen."""
        return gr.update(choices=local_names(), value=None)

    def look(self, name: str | None) -> Updates:
        """What `name` would need."""
        name = (name or "").strip()
        if not name:
            return {self._parts.offer: html.quiet("Choose a model, or write the name of one as organisation/model.")}
        try:
            offer = self._desk.offer(name)
        except EngineError as error:
            return self._without_offer(name, error)
        return self._with_offer(offer)

    def download(self, name: str) -> Updates:
        try:
            offer = self._desk.offer(name)
        except EngineError as error:
            return self._without_offer(name, error)
        try:
            self._desk.start_download(offer)
        except EngineError as error:
            shown = self._with_offer(offer)
            return {**shown, self._parts.offer: html.error_notice(error) + shown[self._parts.offer]}
        return self._with_offer(offer)

    def load(self, name: str) -> Updates:
        try:
            self._desk.load(name)
        except EngineError as error:
            return {self._parts.offer: html.error_notice(error)}
        return {self._parts.load: gr.update(visible=False)}

    def go_back(self, name: str) -> Updates:
        try:
            self._desk.load_previous()
        except EngineError as error:
            return {self._parts.offer: html.error_notice(error)}
        return {self._parts.go_back: gr.update(visible=False)}

    def refresh(self, name: str, request: gr.Request) -> Updates:
        """The page's choice as it is now, if a download began or ended, or a model was loaded."""
        if not self._tabs[request.session_hash].changed("models", self._desk.stamp):
            return {self._parts.chosen: gr.skip()}
        if name:
            return self.look(name)
        if missing := self._desk.missing:  # it was asked for at the start: say what it needs and offer to fetch it
            return {self._parts.accordion: gr.update(open=True), self._parts.name: missing, **self.look(missing)}
        return self._buttons(None)

    def _with_offer(self, offer: ModelOffer) -> Updates:
        loaded = self._program.host.engine is not None and self._program.model_name == offer.name
        return {
            self._parts.chosen: offer.name,
            self._parts.offer: html.model_offer(
                offer.name, offer.facts, offer.sentences, offer.error is not None, loaded
            ),
            **self._buttons(offer),
        }

    def _without_offer(self, name: str, error: EngineError) -> Updates:
        return {self._parts.chosen: name, self._parts.offer: html.error_notice(error), **self._buttons(None)}

    def _buttons(self, offer: ModelOffer | None) -> Updates:
        host, state = self._program.host, self._desk.download
        fetching = state is not None and state.running
        idle = host.state.ready or host.state.error is not None
        can_load = offer is not None and offer.is_here and offer.error is None and idle
        loaded = host.engine is not None and offer is not None and self._program.model_name == offer.name
        previous = self._desk.previous
        return {
            self._parts.download: gr.update(visible=offer is not None and not offer.is_here and not fetching),
            self._parts.cancel: gr.update(visible=fetching),
            self._parts.load: gr.update(visible=can_load and not loaded),
            self._parts.go_back: gr.update(visible=previous is not None, value=f"Back to {previous}"),
        }
