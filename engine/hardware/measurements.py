"""What was measured once on this machine and need not be measured at every start."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from engine.paths import models_dir

FOLDER_NAME = "measurements"


def stored_measurement(identity: tuple[object, ...], measure: Callable[[], float]) -> float:
    """The positive number kept for `identity` (all that it depends on), or `measure()`, which is then kept.

    A file that is damaged counts as none; a folder that cannot be written costs only the next start's time.
    """
    file = measurement_file(identity)
    kept = _read(file)
    if kept is not None:
        return kept
    measured = measure()
    _keep(file, measured)
    return measured


def measurement_file(identity: tuple[object, ...]) -> Path:
    """Where it is kept. Deleting the file has it measured again."""
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:24]
    return models_dir().parent / FOLDER_NAME / f"{digest}.json"


def _read(file: Path) -> float | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


def _keep(file: Path, value: float) -> None:
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(value), encoding="utf-8")
        os.replace(unfinished, file)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
