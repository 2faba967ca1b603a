"""A hub for one test, in place of the real one, and an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_hub import FakeHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Reached through HF_ENDPOINT; the cache is `tmp_path / "hub"`; interrupted downloads are tried again at once."""
    from engine.checkpoint.hub import files  # only now: most tests do without transformers

    use_cache(tmp_path / "hub", monkeypatch)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(files, "RETRY_SECONDS", 0.0)
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


def use_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `folder` the cache of Hugging Face's tools."""
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(folder), raising=False)
