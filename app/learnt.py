"""What was learnt from the person's chats: the predictor's file, and beside it what the last run of learning gave."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

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
    """An empty one where nothing was learnt, or where the file says nothing that can be understood."""
    try:
        return Learnt.model_validate_json(_record_file(fingerprint).read_bytes())
    except (FileNotFoundError, ValidationError):
        return Learnt()


def write_learnt(fingerprint: str, learnt: Learnt) -> None:
    """Replaces the record at once. Raises OSError."""
    file = _record_file(fingerprint)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(learnt.model_dump_json(indent=2), encoding="utf-8")
    os.replace(partial, file)


def _record_file(fingerprint: str) -> Path:
    return predictor_file(fingerprint).with_suffix(".json")
