"""Puts the page together."""

from __future__ import annotations

import gradio as gr

from app.program import Program
from app.ui import answer_settings, chats_at_once, model_card, routing_records
from app.ui.budget import Budget
from app.ui.chat import ChatEvents
from app.ui.layout import build_layout
from app.ui.live_panels import LivePanels
from app.ui.model_picker import ModelPicker
from app.ui.tabs import Tabs

TITLE = "ExpertFlow Desktop"


def build_page(program: Program) -> gr.Blocks:
    """The page of `program`, ready to be mounted."""
    tabs = Tabs()
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as demo:
        parts = build_layout(program.model_name)
        ChatEvents(program, parts.chat, tabs).wire(demo)
        answer_settings.wire(demo, parts.sampling, program.preferences)
        chats_at_once.wire(demo, parts.chats_at_once, program)
        routing_records.wire(demo, parts.records, program)
        model_card.wire(parts.card, program)
        ModelPicker(program, parts.models, tabs).wire(parts.budget.stamp)
        budget = Budget(program, parts.budget)
        budget.wire()
        LivePanels(program, parts, budget, tabs).wire(demo)
    return demo
