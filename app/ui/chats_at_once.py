"""The choice of how many chats are answered together: shown when the page opens, kept when it changes."""

from __future__ import annotations

import gradio as gr

from app.program import Program


def wire(demo: gr.Blocks, choice: gr.Dropdown, program: Program) -> None:
    """Connects the choice; must run inside the `gr.Blocks`."""
    demo.load(lambda: program.preferences.chats_at_once, None, choice, queue=False, show_progress="hidden")
    choice.input(program.set_chats_at_once, choice, None, queue=False, show_progress="hidden")
