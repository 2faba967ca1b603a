"""What the model is: the card of the checkpoint in use, read when it is asked for."""

from __future__ import annotations

from app.program import Program
from app.ui.layout import CardParts
from engine.checkpoint.model_card import read_model_card

LOADING = "The card can be read as soon as the model is loaded."
NO_CARD = "This checkpoint comes without a model card (`README.md` in its folder)."


def wire(parts: CardParts, program: Program) -> None:
    """Fills the card whenever its place is opened; must run inside the `gr.Blocks`."""
    parts.accordion.expand(lambda: card_text(program), None, parts.text, queue=False, show_progress="hidden")


def card_text(program: Program) -> str:
    """Markdown to show."""
    engine = program.host.engine
    if engine is None:
        return LOADING
    return read_model_card(engine.model_path) or NO_CARD
