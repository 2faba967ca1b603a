"""A home of its own for a test, in which the compiled kernels need not be compiled again."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.model.kernels.runtime import cache_folder
from engine.paths import HOME_VARIABLE, models_dir


def separate_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models, measurements, chats and settings go to `folder` from now on."""
    kernels = cache_folder()
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    models_dir().parent.mkdir(parents=True)
    (models_dir().parent / kernels.name).symlink_to(kernels, target_is_directory=True)
