"""Learning from the person's chats in words: what it waits for, how far it is, what came of it."""

from __future__ import annotations

import math
import time
from html import escape

from app.learning.learning import Learning, LearningState
from app.learning.learnt import Learnt, Lesson
from app.learning.need import LearningLimits, Need
from engine.routing.predictor_files import learnt_dir


def learning_explanation(limits: LearningLimits) -> str:
    """What the switch does."""
    return (
        f"After {limits.idle_seconds:.0f} seconds without an answer a process of lowest priority (one core, at most "
        f"{limits.run_seconds / 60:.0f} minutes at a time, about a gigabyte of memory) learns from the recording which "
        "experts your chats need. It rests while an answer is written. What it learnt stays on this machine and is "
        "used, from the next load of the model, only if it predicts your chats better than before."
    )


def learning_words(learning: Learning) -> str:
    """HTML of the line below the switch."""
    state = learning.state
    sentences = [_now(state, learning.limits)]
    if state.phase == "off":
        sentences += ["What was learnt before stays in use until it is forgotten."] * any_learnt()
    else:
        sentences += _so_far(state.learnt)
    return f'<p class="quiet" role="status">{escape(" ".join(sentences))}</p>'


def _now(state: LearningState, limits: LearningLimits) -> str:
    if state.phase == "off":
        return "Learning is off."
    if state.phase == "not recording":
        return "Learning waits until something is recorded."
    if state.elsewhere:
        return "Another window of this program learns just now."
    if state.phase == "waiting":
        return f"Learning waits for {_missing(state.need)}."
    if state.phase == "idle":
        return f"Learning begins when nothing was asked for {limits.idle_seconds:.0f} seconds."
    done = f"{100 * state.share:.0f} %"
    return f"Learning, {done}." if state.phase == "learning" else f"Learning rests at {done}: the model is in use."


def _missing(need: Need) -> str:
    if need.tokens:
        return f"{need.tokens:,} more recorded tokens"
    if need.conversations:
        some = "one more conversation" if need.conversations == 1 else f"some {need.conversations} more conversations"
        return f"{some}, since a fifth of them is put aside to choose and judge by"
    if need.seconds:
        hours = math.ceil(need.seconds / 3600)
        return "less than an hour to pass" if hours <= 1 else f"some {hours} hours to pass"
    if need.bytes:
        return f"{need.bytes / 1e9:.1f} GB more free memory"
    return "mains power: the battery is for your own work"


def _so_far(learnt: Learnt) -> list[str]:
    sentences = []
    if learnt.kept is not None:
        sentences.append(
            f"Last learnt on {_date(learnt.kept)} from {learnt.kept.tokens:,} tokens of {learnt.kept.conversations} "
            f"conversations: recall {_change(learnt.kept)}, in use from the next load of the model."
        )
    if learnt.problem is not None:
        sentences.append(f"The last run gave nothing: {learnt.problem}")
    elif learnt.last is not None and not learnt.last.kept:
        sentences.append(
            f"What was learnt on {_date(learnt.last)} was discarded: it recalls {learnt.last.recall_after:.3f}, the "
            f"predictor in use {learnt.last.recall_before:.3f}."
        )
    return sentences


def _change(lesson: Lesson) -> str:
    return f"{lesson.recall_before:.3f} → {lesson.recall_after:.3f}"


def _date(lesson: Lesson) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(lesson.ended))


def any_learnt() -> bool:
    """Whether there is a predictor that was learnt, of any model."""
    return any(learnt_dir().glob("*.safetensors"))
