"""Numbers measured on this machine, kept from start to start."""

from __future__ import annotations

import hashlib
import json
import math
import os
from contextlib import suppress
from pathlib import Path

from engine.paths import models_dir

FOLDER_NAME = "measurements"


def measurement_file(identity: tuple[object, ...]) -> Path:
    """Where it is kept. Deleting the file has it measured again."""
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:24]
    return models_dir().parent / FOLDER_NAME / f"{digest}.json"


def kept_measurement(identity: tuple[object, ...]) -> float | None:
    """The positive number kept for `identity` (all that it depends on). A damaged file counts as none."""
    try:
        value = json.loads(measurement_file(identity).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


def keep_measurement(identity: tuple[object, ...], value: float) -> None:
    """Keeps it, as a whole or not at all; a folder that cannot be written costs only the next start's time."""
    file = measurement_file(identity)
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(value), encoding="utf-8")
        os.replace(unfinished, file)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
