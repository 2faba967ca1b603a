"""The chat column as it stands in the store, and the words under an answer."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from app.answers import CANCELLED, FAILED, LiveAnswer, last_answer
from app.chats import INTERRUPTED, WRITING, Message
from app.engine_host import EngineHost
from app.program import Program
from app.ui import html
from app.ui.layout import ChatParts
from app.ui.markdown import for_display


def shown_messages(program: Program, chat_id: str, count: int) -> list[Message]:
    """The last `count` messages, without the answer that is being written and without empty ones."""
    live = program.answers.live(chat_id)
    hidden = live.message_id if live else None
    messages = program.store.messages(chat_id) if chat_id else []
    return [m for m in messages if m.id != hidden and m.content][-count:]


def chat_view(program: Program, parts: ChatParts, chat_id: str, count: int) -> dict[Any, Any]:
    """Updates of the chat column for one chat ("" is a new one)."""
    messages = program.store.messages(chat_id) if chat_id else []
    shown = shown_messages(program, chat_id, count)
    live = program.answers.live(chat_id)
    end = last_answer(messages) if live is None else None
    notice, ways_out = _notice(messages, end) if live is None else ("", set())
    return {
        parts.chatbot: [_bubble(m) for m in shown],
        parts.live: live_words(live, program.host) if live else "",
        parts.facts: _facts(end),
        parts.notice: notice,
        parts.again: gr.update(visible="again" in ways_out),
        parts.drop_oldest: gr.update(visible="drop" in ways_out),
        parts.fresh_chat: gr.update(visible="fresh" in ways_out),
        parts.earlier: gr.update(visible=bool(shown) and shown[0].position > messages[0].position),
        parts.send: gr.update(visible=live is None),
        parts.stop: gr.update(visible=live is not None),
        parts.chat_list: chat_list(program, chat_id),
    }


def chat_list(program: Program, chat_id: str) -> Any:
    choices = [(chat.title, chat.id) for chat in program.store.chats()]
    known = any(chat_id == value for _, value in choices)
    return gr.update(choices=choices, value=chat_id if known else None)


def live_words(live: LiveAnswer, host: EngineHost) -> str:
    """The answer so far, or what it is waiting for."""
    if live.text:
        return for_display(live.text)
    if live.submission is None:
        return "*Thinking …*" if host.engine else f"*Waiting for the model: {host.state.words} …*"
    before, (read, total) = live.submission.position, live.submission.prompt_progress
    if before is not None:
        return f"*Waiting: {before} before it …*" if before else "*Waiting: it is next …*"
    if read < total:
        return f"*Reading the chat: {read:,} of {total:,} tokens …*"
    return "*Thinking …*"


def _bubble(message: Message) -> dict[str, str]:
    content = message.content if message.role == "user" else for_display(message.content)
    return {"role": message.role, "content": content}


def _notice(messages: list[Message], end: Message | None) -> tuple[str, set[str]]:
    """Words above the message field and the buttons under them."""
    if not messages:
        return "", set()
    if end is None or (end.finish_reason == CANCELLED and not end.content):
        return html.notice("info", "This message has no answer yet."), {"again"}
    if end.finish_reason in (INTERRUPTED, WRITING):
        return (
            html.notice("warning", "This answer was interrupted.", "The program ended while it was being written."),
            {"again"},
        )
    if end.finish_reason == FAILED:
        error = end.stats.get("error", {})
        ways_out = {"drop", "fresh"} if error.get("kind") == "ContextFull" else {"again"}
        return html.notice("error", error.get("cause", "The answer failed."), error.get("remedy", "")), ways_out
    return "", set()


def _facts(end: Message | None) -> str:
    """One quiet line under the newest answer."""
    if end is None or end.finish_reason in (FAILED, INTERRUPTED, WRITING):
        return ""
    stats = end.stats
    facts = []
    if end.finish_reason == CANCELLED:
        facts.append("stopped")
    elif end.finish_reason == "length":
        facts.append("cut at the longest answer allowed")
    if stats.get("tokens"):
        facts.append(f"{stats['tokens']:,} tokens")
    if stats.get("tokens_per_second"):
        emulated = f" ({escape(stats['emulated'])}, in its time)" if "emulated" in stats else ""
        facts.append(f"{stats['tokens_per_second']:.1f} tokens/s{emulated}")
    if stats.get("first_token_seconds") is not None:
        facts.append(f"first token after {stats['first_token_seconds']:.1f} s")
    if stats.get("hit_rate") is not None:
        whose = " for this chat and others answered meanwhile" if stats.get("others_tokens") else ""
        facts.append(f"{100 * stats['hit_rate']:.0f} % of experts were ready{whose}")
    return f'<p class="facts">{" · ".join(facts)}</p>' if facts else ""
