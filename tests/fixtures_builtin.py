"""The built-in model for tests that need real weights; built once and kept in the cache folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.checkpoint.builtin import ensure_builtin


@pytest.fixture(scope="session")
def builtin_model() -> Path:
    """Folder of the built-in model."""
    return ensure_builtin()
