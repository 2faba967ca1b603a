"""Where predictors lie, and which one counts; cheap to import."""

from __future__ import annotations

from pathlib import Path

from engine.errors import PredictorUnusable
from engine.paths import data_dir
from engine.routing.predictors.weights_file import StoredPredictor, read_predictor

SHIPPED_DIR = Path(__file__).resolve().parents[2] / "assets" / "predictors"


def own_dir() -> Path:
    """Folder of those that the person puts there. Not created here."""
    return data_dir() / "predictors"


def learnt_dir() -> Path:
    """Folder of those that were learnt from the person's chats. Not created here."""
    return own_dir() / "learnt"


def predictor_files(fingerprint: str) -> list[Path]:
    """Where a predictor for the model would be; the first that is there counts."""
    return [folder / f"{fingerprint}.safetensors" for folder in (learnt_dir(), own_dir(), SHIPPED_DIR)]


def find_predictor(fingerprint: str) -> tuple[StoredPredictor | None, str]:
    """The first predictor that is there for the model, and why there is none if it cannot be used."""
    for file in predictor_files(fingerprint):
        if file.exists():
            try:
                return read_predictor(file, fingerprint), ""
            except PredictorUnusable as error:
                return None, f" {error.cause}"
    return None, ""
