"""A wider model says what the model it was made from says, and is there whole or not at all."""

from __future__ import annotations

from collections import namedtuple

import pytest

from engine.checkpoint.safetensors_header import read_checkpoint_headers
from engine.engine import Engine
from engine.errors import DiskFull, UnsupportedModel
from engine.lab import widened_model
from engine.lab.widened_model import widen_experts
from tests.tiny_models import tiny_checkpoint

PROMPT = [7, 30, 99, 12, 5, 88]


@pytest.mark.parametrize("family", ("mixtral", "qwen3_moe", "olmoe"))
def test_answers_stay_and_experts_grow(family, tmp_path, monkeypatch):
    monkeypatch.setattr(widened_model, "_FILE_BYTES", 40_000)  # several files
    path, seen = tiny_checkpoint(family), []
    wide = widen_experts(path, tmp_path / "wide", 3, lambda stage, done, total: seen.append((done, total)))
    assert len(list(wide.glob("*.safetensors"))) > 1 and seen[-1][0] == seen[-1][1]
    before, after = read_checkpoint_headers(path).tensors, read_checkpoint_headers(wide).tensors
    assert after.keys() == before.keys()
    assert all(after[name].nbytes == place.nbytes * (3 if ".experts." in name else 1) for name, place in before.items())
    with Engine.load(path, budget="100%") as small, Engine.load(wide, budget="20%") as large:
        assert large.generate_ids(PROMPT, 12) == small.generate_ids(PROMPT, 12)


def test_what_cannot_be_widened_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="cannot be widened"):
        widen_experts(tiny_checkpoint("gpt_oss"), tmp_path / "wide", 2)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(1000, 900, 100)
    monkeypatch.setattr(widened_model.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskFull, match="are free"):
        widen_experts(tiny_checkpoint("mixtral"), tmp_path / "wide", 2)
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(widened_model, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        widen_experts(tiny_checkpoint("mixtral"), tmp_path / "wide", 2)
    assert not list(tmp_path.iterdir())
