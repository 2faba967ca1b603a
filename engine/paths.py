"""Where things live on this machine: models are cache (can be rebuilt), chats and settings are data."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_config_path, user_data_path

APPLICATION = "expertflow"
HOME_VARIABLE = "EXPERTFLOW_HOME"  # one folder for everything, e.g. on a larger disk


def _folder(default: Path, name: str) -> Path:
    home = os.environ.get(HOME_VARIABLE)
    return Path(home).expanduser() / name if home else default


def models_dir() -> Path:
    """Folder of built or converted models. Not created here."""
    return _folder(user_cache_path(APPLICATION), "cache") / "models"


def data_dir() -> Path:
    """Folder of what must not be lost: chats, traces."""
    return _folder(user_data_path(APPLICATION), "data")


def config_dir() -> Path:
    """Folder of the settings file."""
    return _folder(user_config_path(APPLICATION), "config")
