"""A copy in fewer bits is made once, whole or not at all, and never taken for that of another checkpoint."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engine.checkpoint.catalog import delete_model
from engine.checkpoint.dense_model import open_checkpoint
from engine.checkpoint.expert_key import ExpertKey
from engine.checkpoint.quantised import (
    QuantisedIndex,
    ensure,
    ensure_quantised,
    list_copies,
    plan_quantised,
)
from engine.checkpoint.quantised import quantised_dir as copies_dir
from engine.checkpoint.quantised.layout import PackedLayer
from engine.checkpoint.safetensors_header import SINGLE_NAME
from engine.errors import BuildFailed, DiskFull, ModelNotFound
from engine.paths import HOME_VARIABLE, models_dir
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "model"))


def plan(path: Path, precision: str = "nf4") -> QuantisedIndex:
    return plan_quantised(open_checkpoint(path), precision)


def names() -> list[str]:
    return sorted(path.name for path in copies_dir().iterdir() if path.name != ".lock")


@pytest.fixture
def packed(monkeypatch) -> list[int]:
    """Grows by one with each expert that is quantised."""
    calls = []
    pack = PackedLayer.pack

    def counting(layer, slot):
        calls.append(1)
        return pack(layer, slot)

    monkeypatch.setattr(PackedLayer, "pack", counting)
    return calls


def test_planning_writes_nothing(checkpoint):
    index = plan(checkpoint)
    assert not copies_dir().exists()
    assert index.total_bytes == index.native.total_bytes
    assert index.weights_per_expert(0) == index.native.weights_per_expert(0)


def test_a_copy_is_made_once(checkpoint, packed):
    progress = []
    index = ensure_quantised(plan(checkpoint), lambda *step: progress.append(step))
    assert len(packed) == sum(index.experts_per_layer) == progress[-1][1] == progress[-1][2]
    ensure_quantised(plan(checkpoint))
    assert len(packed) == sum(index.experts_per_layer)
    ensure_quantised(plan(checkpoint, "int8"))
    assert len(packed) == 2 * sum(index.experts_per_layer)
    assert {copy.precision for copy in list_copies()} == {"int8", "nf4"}


def test_files_are_safetensors_with_an_aligned_range_for_each_expert(checkpoint):
    index = ensure_quantised(plan(checkpoint))
    for layer, file in enumerate(index.files):
        stored = load_file(file)["experts"]
        assert tuple(stored.shape) == (8, index.layers[layer].stride_bytes)
        raw = file.read_bytes()
        for expert in range(8):
            (piece,) = index.ranges(ExpertKey(layer, expert))
            assert (piece.offset | piece.nbytes) % 4096 == 0 and piece.nbytes <= index.slot_bytes
            assert raw[piece.offset : piece.offset + piece.nbytes] == stored[expert].numpy().tobytes()
        assert all(param.offset_bytes % 64 == 0 for param in index.params(layer))
    assert index.total_expert_bytes == sum(stored.nbytes for stored in (load_file(f)["experts"] for f in index.files))


def test_a_build_that_is_interrupted_leaves_nothing(checkpoint):
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_quantised(plan(checkpoint), interrupt)
    assert names() == []


def test_what_a_killed_build_leaves_is_never_taken_for_a_copy(checkpoint, packed, monkeypatch):
    index = plan(checkpoint)
    with monkeypatch.context() as killed:  # a killed process clears nothing away
        killed.setattr(ensure.shutil, "rmtree", lambda *path, **settings: None)
        killed.setattr(ensure, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ensure_quantised(index)
    (leftover,) = names()
    assert leftover.startswith(".building-") and list_copies() == []
    shutil.copytree(copies_dir() / leftover, index.folder)  # nor would it be under the copy's own name
    before = len(packed)
    ensure_quantised(plan(checkpoint))
    assert len(packed) == 2 * before
    assert names() == [index.folder.name] == [copy.name for copy in list_copies()]


def test_a_changed_checkpoint_is_quantised_anew(checkpoint, packed):
    first = ensure_quantised(plan(checkpoint)).folder
    tensors = load_file(checkpoint / SINGLE_NAME)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, checkpoint / SINGLE_NAME)
    second = ensure_quantised(plan(checkpoint)).folder
    assert first != second and not first.exists()
    assert names() == [second.name]
    assert len(packed) == 2 * 24


@pytest.mark.parametrize("damage", ["shorter", "missing", "manifest"])
def test_a_damaged_copy_is_made_anew(checkpoint, packed, damage):
    index = ensure_quantised(plan(checkpoint))
    whole = index.files[1].read_bytes()
    if damage == "shorter":
        index.files[1].write_bytes(whole[:-1])
    elif damage == "missing":
        index.files[1].unlink()
    else:
        (index.folder / "quantised.json").write_text("{")
    assert list_copies() == []
    ensure_quantised(index)
    assert index.files[1].read_bytes() == whole
    assert len(packed) == 2 * 24


def test_a_copy_of_another_format_is_not_used(checkpoint):
    index = ensure_quantised(plan(checkpoint))
    manifest = index.folder / "quantised.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 0}))
    assert list_copies()[0].precision == "nf4"  # still there to be deleted
    assert "-v1-" in index.folder.name


def test_no_space_is_told_before_anything_is_written(checkpoint, packed, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(ensure.shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(DiskFull, match="1,000 are free"):
        ensure_quantised(plan(checkpoint))
    assert names() == [] and packed == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(checkpoint, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ensure, "write_experts", full)
    with pytest.raises(DiskFull):
        ensure_quantised(plan(checkpoint))
    assert names() == []


def test_a_folder_that_cannot_be_written(checkpoint, home):
    (home / "home").write_text("a file in the way")
    with pytest.raises(BuildFailed, match="cannot be written"):
        ensure_quantised(plan(checkpoint))


def test_a_library_that_does_not_start(checkpoint, packed, monkeypatch):
    first = ensure_quantised(plan(checkpoint, "int8")).folder
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BuildFailed, match="bitsandbytes does not start"):
        ensure_quantised(plan(checkpoint))
    assert names() == [first.name]
    assert ensure_quantised(plan(checkpoint, "int8")).folder == first  # what is made needs no library


def test_copies_are_listed_and_deleted(checkpoint):
    index = ensure_quantised(plan(checkpoint))
    (copy,) = list_copies()
    on_disk = sum(file.stat().st_size for file in index.files)
    assert (copy.path, copy.source, copy.bytes) == (index.folder, checkpoint, on_disk)
    assert json.loads(json.dumps(copy.to_dict()))["precision"] == "nf4"
    assert delete_model(copy.name) >= on_disk
    assert names() == [] and list_copies() == []
    with pytest.raises(ModelNotFound):
        delete_model(copy.name)


def test_deleting_a_model_deletes_its_copies(checkpoint):
    own = models_dir() / "mine"
    shutil.copytree(checkpoint, own)
    ensure_quantised(plan(checkpoint))
    kept = names()
    copy = ensure_quantised(plan(own)).folder
    assert delete_model("mine") > sum(file.stat().st_size for file in checkpoint.iterdir())
    assert not own.exists() and not copy.exists() and names() == kept
