"""The controls of recorded routing and of learning from it: switches that are off until asked for, what there is, and
how to forget it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.program import Program
from app.routing_records import RoutingRecords, recorded, records_dir
from app.ui.layout import RecordParts
from app.ui.learning_view import any_learnt, learning_explanation
from engine.errors import EngineError


def explanation(records: RoutingRecords) -> str:
    """What the switch does, in one sentence."""
    return (
        "Keeps the tokens of your chats, and so what they say, with the experts each token used, in "
        f"`{records_dir()}`, at most {records.limit_megabytes} MB for each model; nothing of it leaves this "
        "machine, and the button below deletes all of it, with what was learnt from it."
    )


def state_words(records: RoutingRecords) -> str:
    """How much there is."""
    try:
        found = recorded()
    except EngineError as error:
        return f"{error.cause} {error.remedy}"
    tokens = sum(one.tokens for one in found)
    if not tokens:
        return "Recording begins with the next token." if records.on else "Nothing is recorded."
    conversations, size = sum(one.conversations for one in found), sum(one.bytes for one in found)
    return f"{tokens:,} tokens of {conversations} conversations are recorded ({size / 1e6:.1f} MB)."


def wire(demo: gr.Blocks, parts: RecordParts, program: Program) -> None:
    """Connects the controls; must run inside the `gr.Blocks`."""
    records, learning = program.routing, program.learning

    def switch(on: bool) -> tuple[bool, str]:
        learning.switch_recording(on)
        return learning.on, state_words(records)

    def learn(on: bool) -> tuple[bool, str]:
        try:
            learning.switch(on)
        except EngineError as error:
            return learning.on, f"{error.cause} {error.remedy}"
        return learning.on, state_words(records)

    def forget() -> str:
        until_next = " The loaded model may use it until its next load." * any_learnt()
        try:
            freed = learning.forget()
        except EngineError as error:
            return f"{error.cause} {error.remedy}"
        return f"Forgotten; {freed / 1e6:.1f} MB are free again.{until_next}"

    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    shown = [parts.switch, parts.explanation, parts.learn, parts.learn_explanation]
    words = learning_explanation(learning.limits)
    demo.load(lambda: (records.on, explanation(records), learning.on, words), None, shown, **quiet)
    parts.accordion.expand(lambda: state_words(records), None, parts.state, **quiet)
    parts.switch.input(switch, parts.switch, [parts.learn, parts.state], **quiet)
    parts.learn.input(learn, parts.learn, [parts.learn, parts.state], **quiet)
    parts.forget.click(forget, None, parts.state, **quiet)
