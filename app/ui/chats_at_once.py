"""The choice of how many chats are answered together: shown when the page opens, kept when it changes."""

from __future__ import annotations

import gradio as gr

from app.program import Program

USUAL = (1, 2, 3, 4, 6, 8)


def choices(chosen: int = 0) -> list[tuple[str, int]]:
    """In words and as a setting; `chosen` is among them, wherever it was set."""
    counts = sorted({*USUAL, chosen} - {0})
    return [("As many as go well", 0), *((str(chats), chats) for chats in counts)]


def wire(demo: gr.Blocks, choice: gr.Dropdown, program: Program) -> None:
    """Connects the choice; must run inside the `gr.Blocks`."""

    def shown() -> gr.Dropdown:
        chosen = program.preferences.chats_at_once
        return gr.Dropdown(choices=choices(chosen), value=chosen)

    demo.load(shown, None, choice, queue=False, show_progress="hidden")
    choice.input(program.set_chats_at_once, choice, None, queue=False, show_progress="hidden")
