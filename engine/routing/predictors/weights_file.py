"""A trained predictor as one safetensors file: arrays, and a JSON header that says whose routing they know."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from engine.errors import PredictorUnusable
from engine.routing.shape import RoutingShape

FORMAT_VERSION = 1
_HEADER = "expertflow_predictor"
_TRAIN = "Train one with `train-predictor`."


@dataclass(frozen=True)
class StoredPredictor:
    """`kind` says who can read the arrays, `model` is the fingerprint of the model whose routing they know.

    sizes: what the arrays' shapes follow from; history: what it was trained on and how well that went.
    """

    kind: str
    model: str
    shape: RoutingShape
    sizes: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    history: Mapping[str, Any] = field(default_factory=dict)


def write_predictor(file: Path, stored: StoredPredictor) -> None:
    """Replaces `file` at once: whoever opens it sees the old one or the new one."""
    header = {
        "format": FORMAT_VERSION,
        "kind": stored.kind,
        "model": stored.model,
        "shape": stored.shape.to_dict(),
        "sizes": dict(stored.sizes),
        "history": dict(stored.history),
    }
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    arrays = {name: np.ascontiguousarray(array) for name, array in stored.arrays.items()}
    try:
        save_file(arrays, partial, metadata={_HEADER: json.dumps(header)})
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def read_predictor(file: Path, model: str | None = None) -> StoredPredictor:
    """Raises PredictorUnusable when it is no predictor, of another version, or not of `model` (None: any will do)."""
    try:
        with safe_open(file, framework="numpy") as opened:
            text = (opened.metadata() or {}).get(_HEADER)
            if text is None:
                raise PredictorUnusable(f"{file} is not a predictor's file.", _TRAIN)
            header = json.loads(text)
            if header["format"] != FORMAT_VERSION:
                raise PredictorUnusable(
                    f"{file} is of format {header['format']}; this program reads format {FORMAT_VERSION}.",
                    "Train it again with `train-predictor`.",
                )
            if model is not None and header["model"] != model:
                raise PredictorUnusable(
                    f"{file} knows the routing of model {header['model']}, not of {model}.",
                    "Train one on traces of this model with `train-predictor`.",
                )
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            shape = RoutingShape(**header["shape"])
            return StoredPredictor(header["kind"], header["model"], shape, header["sizes"], arrays, header["history"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PredictorUnusable(f"{file} cannot be read ({error}).", _TRAIN) from error
