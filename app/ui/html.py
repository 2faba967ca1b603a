"""Small pieces of HTML; every text that is not ours is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from app.engine_host import LoadState
from app.model_desk import DownloadState
from app.ui.plan_view import Plan, budget_words, bytes_in_words, invitation, total_words
from engine.errors import EngineError

PREVIEW = "Release to apply."
PLANNED = "The plan for this start; the slider can be moved as soon as the model is ready."
APPLYING = "Applied as soon as the token being computed is done …"


def notice(kind: str, title: str, words: str = "") -> str:
    """A box above the message field; `kind` is "error", "warning" or "info"."""
    role = "alert" if kind == "error" else "status"
    body = f'<span class="notice-words">{escape(words)}</span>' if words else ""
    return f'<div class="notice notice-{kind}" role="{role}"><strong>{escape(title)}</strong>{body}</div>'


def error_notice(error: EngineError) -> str:
    """An engine's error unchanged: its cause, then its remedy."""
    return notice("error", error.cause, error.remedy)


def load_notice(state: LoadState) -> str:
    """Progress of loading, or why it failed."""
    if state.error:
        return error_notice(state.error)
    share = 100 * state.done / state.total if state.total else 0
    bar = f'<progress max="100" value="{share:.0f}"></progress>' if state.total else "<progress></progress>"
    count = _progress_words(state.done, state.total) if state.total else ""
    return (
        '<div class="notice notice-info" role="status">'
        f"<strong>{escape(state.stage)}</strong>"
        f'<span class="notice-words">{count} {bar}<br>You can write already: '
        "your message is answered as soon as the model is ready.</span></div>"
    )


def _progress_words(done: int, total: int) -> str:
    """Stages count bytes or pieces; millions of pieces do not occur."""
    if total >= 1_000_000:
        return f"{bytes_in_words(done)} of {bytes_in_words(total)}"
    return f"{done:,} of {total:,}"


def download_notice(state: DownloadState | None) -> str:
    """How far the download is, or how it ended."""
    if state is None:
        return ""
    if state.error:
        return error_notice(state.error)
    if state.cancelled:
        arrived = f"{bytes_in_words(state.done)} of {bytes_in_words(state.total)} are kept for the next time."
        return notice("info", f"The download of {state.name} was stopped.", arrived)
    if state.complete:
        return notice("info", f"{state.name} is on this machine.", "Its content was checked.")
    return (
        f'<div class="notice notice-info" role="status"><strong>Downloading {escape(state.name)}</strong>'
        f'<span class="notice-words">{bytes_in_words(state.done)} of {bytes_in_words(state.total)} '
        f'<progress max="1000" value="{1000 * state.done // max(state.total, 1)}"></progress></span></div>'
    )


def model_offer(
    name: str, facts: Sequence[tuple[str, str]], sentences: Sequence[str], refused: bool, loaded: bool
) -> str:
    """What a model is, and what it would need here: one sentence a decision."""
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(words)}</dd>" for label, words in facts)
    kind = ' class="budget-warning"' if refused else ""
    items = "".join(f"<li{kind}>{escape(text)}</li>" for text in sentences)
    state = '<p class="quiet">This model is loaded.</p>' if loaded else ""
    return f'<div class="offer"><b>{escape(name)}</b>{state}<dl>{rows}</dl><ul>{items}</ul></div>'


def quiet(words: str) -> str:
    return f'<p class="quiet">{escape(words)}</p>'


def header(model_name: str, details: str, pill: str, pill_kind: str) -> str:
    """The line at the top: product, model, state."""
    return (
        '<div class="brand"><span class="brand-mark" aria-hidden="true"></span><h1>ExpertFlow</h1></div>'
        f'<div class="model"><b>{escape(model_name)}</b><span>{escape(details)}</span></div>'
        f'<span class="pill pill-{pill_kind}" role="status">{escape(pill)}</span>'
    )


def budget_label(plan: Plan, hint: str = "", warnings: Sequence[str] = ()) -> str:
    """What the slider's position means, and what to do or to expect next."""
    lines = [f"<b>{escape(budget_words(plan))}</b>", escape(total_words(plan))]
    lines.append(f'<span class="quiet">{escape(hint or invitation(plan))}</span>')
    lines += [f'<span class="budget-warning">{escape(text)}</span>' for text in warnings]
    return f'<div class="budget-label">{"<br>".join(lines)}</div>'


def budget_error(error: EngineError) -> str:
    cause = f'<b class="budget-warning">{escape(error.cause)}</b>'
    return f'<div class="budget-label">{cause}<br>{escape(error.remedy)}</div>'


def budget_waiting() -> str:
    return '<div class="budget-label quiet">The slider can be moved as soon as the model is ready.</div>'


def budget_marks(found: Sequence[dict[str, Any]]) -> str:
    """Ticks under the slider; the words at its ends stay inside."""
    ticks = "".join(
        f'<span class="mark {_end(mark["place"])}" style="left:{mark["place"]}%">{escape(mark["label"])}</span>'
        for mark in found
    )
    return f'<div class="marks" aria-hidden="true">{ticks}</div>'


def _end(place: float) -> str:
    return "mark-first" if place < 8 else "mark-last" if place > 92 else ""


def reasons(plan: Plan, notes: Sequence[str]) -> str:
    """Why the plan is as it is: one sentence a decision."""
    items = [*plan.reasons, *plan.warnings, *notes]
    if not items:
        return '<p class="quiet">The reasons appear when the model is loaded.</p>'
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in items) + "</ul>"
