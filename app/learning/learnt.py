"""What was learnt from the person's chats: the predictor's file, and beside it what the last run of learning gave."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from app.learning.run import Run
from engine.routing.predictor_files import learnt_dir


class Lesson(BaseModel, frozen=True):
    """One run of learning: from how much, and how well the predictor foretold held-out chats before and after.

    ended: seconds since 1970; kept: whether the predictor was taken.
    """

    ended: float
    tokens: int
    conversations: int
    judged_tokens: int
    recall_before: float
    recall_after: float
    kept: bool


class Learnt(BaseModel, frozen=True):
    """Of one model. `mark`: how far its recording was known when the last run began (`TraceStore.mark`).

    kept: the run that the predictor in the file comes from; last: the last one, unless `problem` says why it failed.
    """

    mark: int = 0
    ended: float = 0.0
    kept: Lesson | None = None
    last: Lesson | None = None
    problem: str | None = None


def predictor_file(fingerprint: str) -> Path:
    """Where the predictor of the model with this fingerprint is, or would be."""
    return learnt_dir() / f"{fingerprint}.safetensors"


def read_learnt(fingerprint: str) -> Learnt:
    """An empty one where nothing was learnt, or where the file cannot be read."""
    try:
        return Learnt.model_validate_json(_record_file(fingerprint).read_bytes())
    except (OSError, ValidationError):
        return Learnt()


def take(run: Run, learnt: dict[str, Any] | None, problem: str | None) -> None:
    """Writes down how a run ended: with what it has `learnt`, a Lesson but for the time, or with a `problem`; the
    predictor that it made takes its place, if it is to be kept. Raises OSError.
    """
    before = read_learnt(run.model)
    after = before.model_copy(update={"mark": run.mark, "ended": time.time(), "problem": problem})
    if learnt is not None:
        lesson = Lesson(ended=after.ended, **learnt)
        after = after.model_copy(update={"last": lesson, "kept": lesson if lesson.kept else before.kept})
        if lesson.kept:
            file = predictor_file(run.model)
            file.parent.mkdir(parents=True, exist_ok=True)
            os.replace(run.candidate, file)
    write_learnt(run.model, after)


def write_learnt(fingerprint: str, learnt: Learnt) -> None:
    """Replaces the record at once. Raises OSError."""
    file = _record_file(fingerprint)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(learnt.model_dump_json(indent=2), encoding="utf-8")
    os.replace(partial, file)


def _record_file(fingerprint: str) -> Path:
    return predictor_file(fingerprint).with_suffix(".json")
