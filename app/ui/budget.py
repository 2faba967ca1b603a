"""The budget slider: a preview while it is dragged, a live resize when it is released."""

from __future__ import annotations

import threading
import time
from typing import Any

import gradio as gr

from app.program import Program
from app.ui import html
from app.ui.layout import BudgetParts
from app.ui.plan_view import Plan, budget_of, marks, minimum_percent, percent_resident
from engine.errors import EngineError

AUTO = "auto"
AUTO_VALID_SECONDS = 10.0  # the automatic budget follows free memory; asking is not free
BEING_MOVED_SECONDS = 1.0  # so long after a move, what the program says of an earlier position is out of date


class Budget:
    """Handlers of the slider and its words."""

    def __init__(self, program: Program, parts: BudgetParts) -> None:
        self._program = program
        self._parts = parts
        self._auto_percent: float | None = None
        self._auto_at = -AUTO_VALID_SECONDS
        self._lock = threading.Lock()
        self._resizing = threading.Lock()

    def wire(self) -> None:
        """Connects the slider; must run inside the `gr.Blocks`."""
        slider, label = self._parts.slider, self._parts.label
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        moved = self._parts.moved
        slider.input(self.preview, slider, [label, moved], trigger_mode="always_last", **quiet)
        released = slider.release(self.announce, slider, label, trigger_mode="always_last", **quiet)
        released.then(self.apply, slider, [slider, label], trigger_mode="always_last", **quiet)
        self._parts.auto.click(self.apply_auto, None, [slider, label], **quiet)
        parts = self._parts
        shown = [slider, label, parts.marks, parts.auto, parts.load_again]
        parts.stamp.change(self.refresh, moved, shown, trigger_mode="always_last", **quiet)
        parts.load_again.click(self.load_again, None, None, **quiet)

    def preview(self, percent: float) -> tuple[str, float]:
        """The plan that this position would give, and when it was moved there; changes nothing."""
        return self._words_for(percent, html.PREVIEW), time.monotonic()

    def announce(self, percent: float) -> Any:
        """A resize waits for the token or prefill pass being computed: say so at once."""
        if self._program.host.engine is None or not self._program.answers.in_progress:
            return gr.skip()
        return self._words_for(percent, html.APPLYING)

    def _words_for(self, percent: float, what_next: str) -> str:
        engine = self._program.host.engine
        if engine is None:
            return html.budget_waiting()
        try:
            plan = engine.plan_for(budget_of(percent))
        except EngineError as error:
            return html.budget_error(error)
        if plan.slots == engine.plan.slots:  # moved there already, and told late
            return html.budget_label(plan, warnings=plan.warnings)
        return html.budget_label(plan, what_next)

    def apply(self, percent: float) -> tuple[Any, Any]:
        """Leaves the slider alone where it is right: it may have been moved on meanwhile."""
        slider, label = self._resize(budget_of(percent))
        return (gr.skip() if slider.get("value") == percent else slider), label

    def apply_auto(self) -> tuple[Any, str]:
        return self._resize(AUTO)

    def stamp(self) -> str:
        """Changes whenever the slider and its words have to be shown anew."""
        host = self._program.host
        engine = host.engine
        if engine is None:
            return f"failed {host.state.error}" if host.state.error else "planned" if host.plan else "loading"
        plan, auto = engine.plan, self.auto_percent()
        return f"{plan.slots}/{plan.experts_total}/{plan.minimum_slots}/{auto}"

    def refresh(self, moved: float) -> dict[Any, Any]:
        """The slider and its words as they are now; a slider that was `moved` (monotonic seconds) just now stays."""
        engine, plan, parts = self._program.host.engine, self._program.host.plan, self._parts
        failed = self._program.host.state.error is not None
        if engine is None and (failed or plan is None):
            return {parts.load_again: gr.update(visible=failed)}
        if engine is None:
            return {
                parts.slider: _slider_update(plan, interactive=False),
                parts.label: html.budget_label(plan, html.PLANNED, plan.warnings),
            }
        being_moved = time.monotonic() - moved < BEING_MOVED_SECONDS
        return {
            parts.slider: gr.skip() if being_moved else _slider_update(plan),
            parts.label: html.budget_label(plan, warnings=plan.warnings),
            parts.marks: html.budget_marks(marks(plan, self.auto_percent())),
            parts.auto: gr.update(interactive=True),
            parts.load_again: gr.update(visible=failed),
        }

    def load_again(self) -> None:
        """After a failed start: once more, with the budget that fits."""
        self._program.host.start(budget=AUTO)

    def _resize(self, budget: str) -> tuple[Any, str]:
        engine = self._program.host.engine
        if engine is None:
            return gr.skip(), html.budget_waiting()
        with self._resizing:  # one after the other, so that what is kept is what was resized to last
            try:
                plan = engine.resize(budget)
            except EngineError as error:
                return _slider_update(engine.plan), html.budget_error(error)
            self._program.preferences.set_budget(budget)
        return _slider_update(plan), html.budget_label(plan, warnings=plan.warnings)

    def auto_percent(self) -> float | None:
        """Share of the experts that the automatic budget would hold now; None while it is not known."""
        engine = self._program.host.engine
        with self._lock:
            if engine is not None and time.monotonic() - self._auto_at >= AUTO_VALID_SECONDS:
                try:
                    self._auto_percent = percent_resident(engine.plan_for(AUTO))
                except EngineError:
                    self._auto_percent = None
                self._auto_at = time.monotonic()
            return self._auto_percent


def _slider_update(plan: Plan, interactive: bool = True) -> Any:
    return gr.update(value=round(percent_resident(plan)), minimum=minimum_percent(plan), interactive=interactive)
