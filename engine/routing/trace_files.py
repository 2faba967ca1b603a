"""Where recorded routing comes from: everything that trains or measures predictors reads traces through `read_traces`.

The files are an interim form, one .npz of arrays for each recording. The streaming store of traces takes its place
here; nobody else opens trace files.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import InvalidSetting
from engine.routing.shape import RoutingShape
from engine.routing.trace import RoutingTrace

_HEADER = "header"
_REQUIRED = ("token_ids", "experts", "weights", "decoded")
_OPTIONAL = ("ahead", "hidden")
_REMEDY = "Record it again, or leave the file out."


@dataclass(frozen=True)
class TraceSet:
    """Conversations of one model. `model` is its fingerprint: predictors are only good for the model they learnt."""

    model: str
    shape: RoutingShape
    traces: tuple[RoutingTrace, ...]

    @property
    def tokens(self) -> int:
        return sum(len(trace) for trace in self.traces)


def read_traces(files: Sequence[Path]) -> TraceSet:
    """All conversations of `files`, which must come from one model. Raises InvalidSetting with the file's name."""
    if not files:
        raise InvalidSetting("There are no traces to read.", "Name at least one file with --traces.")
    sets = [_read_npz(file) for file in files]
    for file, one in zip(files, sets, strict=True):
        if (one.model, one.shape) != (sets[0].model, sets[0].shape):
            raise InvalidSetting(f"{file} was recorded with another model than {files[0]}.", "Use one model's traces.")
    return TraceSet(sets[0].model, sets[0].shape, tuple(trace for one in sets for trace in one.traces))


def write_npz(file: Path, model: str, shape: RoutingShape, traces: Iterable[RoutingTrace]) -> None:
    """The interim form: arrays named "<number>.<field>" and a JSON header."""
    arrays: dict[str, np.ndarray] = {}
    conversations = []
    for number, trace in enumerate(traces):
        conversations.append(trace.conversation)
        for name in (*_REQUIRED, *_OPTIONAL):
            if (value := getattr(trace, name)) is not None:
                arrays[f"{number}.{name}"] = value
    header = {"model": model, "shape": shape.to_dict(), "conversations": conversations}
    with file.open("wb") as out:
        np.savez(out, **{_HEADER: np.array(json.dumps(header))}, **arrays)  # type: ignore[arg-type]


def _read_npz(file: Path) -> TraceSet:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            header = json.loads(str(arrays[_HEADER]))
            traces = tuple(
                RoutingTrace(
                    name,
                    *(arrays[f"{number}.{field}"] for field in _REQUIRED),
                    *(arrays.get(f"{number}.{field}") for field in _OPTIONAL),
                )
                for number, name in enumerate(header["conversations"])
            )
            return TraceSet(header["model"], RoutingShape(**header["shape"]), traces)
    except OSError as error:
        raise InvalidSetting(f"{file} cannot be read ({error.strerror or error}).", "Check its name.") from error
    except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidSetting(f"{file} is not a file of routing traces ({error}).", _REMEDY) from error
