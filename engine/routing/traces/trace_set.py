"""Recorded conversations in memory, for training and measuring predictors: nobody else opens trace files for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InvalidSetting
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_store import TraceStore


@dataclass(frozen=True)
class TraceSet:
    """Conversations of one model. `model` is its fingerprint: predictors are only good for the model they learnt."""

    model: str
    shape: RoutingShape
    traces: tuple[RoutingTrace, ...]

    @property
    def tokens(self) -> int:
        return sum(len(trace) for trace in self.traces)


def read_traces(files: Sequence[Path], until: int | None = None) -> TraceSet:
    """All conversations of `files`, which must come from one model; `until` as in `TraceStore.traces`.

    Raises InvalidSetting with the file's name, TraceStoreUnavailable.
    """
    if not files:
        raise InvalidSetting("There are no traces to read.", "Name at least one file with --traces.")
    sets = [_read(file, until) for file in files]
    for file, one in zip(files, sets, strict=True):
        if (one.model, one.shape) != (sets[0].model, sets[0].shape):
            raise InvalidSetting(f"{file} was recorded with another model than {files[0]}.", "Use one model's traces.")
    return TraceSet(sets[0].model, sets[0].shape, tuple(trace for one in sets for trace in one.traces))


def _read(file: Path, until: int | None) -> TraceSet:
    with TraceStore(file) as store:
        if store.model is None:
            raise InvalidSetting(f"Nothing is recorded in {file}.", "Record with `trace --prompts FILE --out FILE`.")
        return TraceSet(store.model.fingerprint, store.model.shape, tuple(store.traces(until)))
