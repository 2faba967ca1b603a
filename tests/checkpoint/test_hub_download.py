"""Models fetched from a hub on this machine: whole, resumed, stopped, damaged, refused."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import WeakFileLock

from engine import Engine
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.hub import download as downloading
from engine.checkpoint.hub import files
from engine.checkpoint.hub.download import download, plan_download
from engine.checkpoint.hub.repository import look_up
from engine.errors import (
    AccessDenied,
    Cancelled,
    CheckpointCorrupt,
    DiskFull,
    DownloadBusy,
    HubUnreachable,
    ModelNotFound,
)
from tests.tiny_models import tiny_checkpoint

NAME = "org/moe"
WEIGHTS = "model.safetensors"


@pytest.fixture
def theirs(hub, tmp_path) -> Path:
    """What the hub serves: a checkpoint with the usual things beside it."""
    folder = tmp_path / "theirs"
    shutil.copytree(tiny_checkpoint("mixtral"), folder)
    for name in ("README.md", "tokenizer.json", "merges.txt", "pytorch_model.bin", "modeling_own.py", "model-q4.gguf"):
        (folder / name).write_text(f"content of {name}")
    (folder / "original").mkdir()
    (folder / "original" / WEIGHTS).write_text("a copy in another format")
    (folder / "original" / "config.json").write_text("{}")
    hub.add(NAME, folder)
    return folder


def partial_files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "hub").rglob("*.incomplete"))


def weights_bytes(theirs: Path) -> int:
    return (theirs / WEIGHTS).stat().st_size


def test_a_model_comes_whole_and_nothing_else_comes(hub, theirs, tmp_path):
    heard = []
    folder = download(NAME, lambda *progress: heard.append(progress))
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    expected = {"README.md", "config.json", "generation_config.json", "merges.txt", WEIGHTS, "tokenizer.json"}
    assert found == sorted(expected & {path.name for path in theirs.iterdir()})
    assert all((folder / name).read_bytes() == (theirs / name).read_bytes() for name in found)
    assert ExpertIndex.from_checkpoint(folder).total_bytes == ExpertIndex.from_checkpoint(theirs).total_bytes
    total = sum((theirs / name).stat().st_size for name in found)
    assert heard[-1] == (f"Downloading {NAME}", total, total)
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)
    assert not partial_files(tmp_path)


def test_other_tools_of_hugging_face_find_it_too(hub, theirs):
    from huggingface_hub import scan_cache_dir, snapshot_download

    folder = download(NAME)
    (repo,) = scan_cache_dir().repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.refs) == (NAME, {"main"})
    assert Path(snapshot_download(NAME, local_files_only=True)) == folder


def test_what_is_here_is_not_fetched_again(hub, theirs):
    download(NAME)
    asked = hub.downloads(WEIGHTS)
    assert plan_download(look_up(NAME)).is_complete
    download(NAME)
    assert hub.downloads(WEIGHTS) == asked


def test_a_checkpoint_in_many_shards(hub, tmp_path):
    sharded = tiny_checkpoint("mixtral", sharded=True)
    hub.add(NAME, sharded)
    folder = download(NAME)
    assert {path.name for path in folder.iterdir()} == {path.name for path in sharded.iterdir()}
    assert ExpertIndex.from_checkpoint(folder).total_bytes == ExpertIndex.from_checkpoint(sharded).total_bytes


def test_a_broken_connection_is_taken_up_where_it_broke(hub, theirs):
    hub.cut_after_bytes, hub.cuts = 70_000, 2
    folder = download(NAME)
    assert (folder / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
    assert {"bytes=70000-", "bytes=140000-"} <= set(hub.ranges)


def test_a_download_that_was_given_up_goes_on_the_next_time(hub, theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ATTEMPTS", 1)
    hub.cut_after_bytes, hub.cuts = 0, 1000
    with pytest.raises(HubUnreachable, match="cannot be reached") as caught:
        download(NAME)
    assert "kept" in caught.value.remedy
    hub.cut_after_bytes, hub.hold = None, threading.Event()
    stop = threading.Event()
    threading.Thread(target=lambda: (hub.held.wait(30), stop.set(), hub.hold.set())).start()
    with pytest.raises(Cancelled):
        download(NAME, is_cancelled=stop.is_set)
    hub.hold = None
    (partial,) = [path for path in partial_files(tmp_path) if path.stat().st_size]
    had = partial.stat().st_size
    assert 0 < had < weights_bytes(theirs)
    plan = plan_download(look_up(NAME))
    assert plan.missing_bytes == weights_bytes(theirs) - had
    hub.ranges.clear()
    folder = download(NAME)
    assert hub.ranges == [f"bytes={had}-"]
    assert (folder / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()


def test_a_hub_that_cannot_begin_in_the_middle_begins_anew(hub, theirs):
    hub.cut_after_bytes, hub.cuts, hub.serves_ranges = 70_000, 1, False
    heard = []
    folder = download(NAME, lambda stage, done, total: heard.append((done, total)))
    assert (folder / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
    assert heard[-1][0] == heard[-1][1]
    assert all(done <= total for done, total in heard)


def test_what_the_progress_callback_raises_ends_the_download(hub, theirs, tmp_path):
    hub.hold = threading.Event()

    def interrupt(stage: str, done: int, total: int) -> None:
        if hub.held.is_set():
            raise KeyboardInterrupt

    released = threading.Thread(target=lambda: (hub.held.wait(30), hub.hold.set()))
    released.start()
    with pytest.raises(KeyboardInterrupt):
        download(NAME, interrupt)
    released.join()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("download")]


def test_damaged_content_is_thrown_away_and_comes_right_the_next_time(hub, theirs, tmp_path):
    hub.damaged = True
    with pytest.raises(CheckpointCorrupt, match="arrived damaged"):
        download(NAME)
    assert hub.repositories[NAME].files[WEIGHTS].sha256 not in {path.stem for path in partial_files(tmp_path)}
    assert not list((tmp_path / "hub").rglob(WEIGHTS))
    hub.damaged = False
    assert (download(NAME) / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()


def test_a_file_that_ends_early_is_never_taken_for_whole(hub, theirs, tmp_path):
    hub.truncated_by = 1000
    with pytest.raises(CheckpointCorrupt, match="ends after"):
        download(NAME)
    assert not list((tmp_path / "hub").rglob(WEIGHTS))


def test_a_file_damaged_in_the_cache_is_fetched_again(hub, theirs):
    folder = download(NAME)
    with (folder / WEIGHTS).open("r+b") as stream:
        stream.truncate(1000)
    assert not plan_download(look_up(NAME)).is_complete
    assert (download(NAME) / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()


def test_a_system_without_symbolic_links_has_each_file_once(hub, theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "are_symlinks_supported", lambda folder: False)
    folder = download(NAME)
    assert not (folder / WEIGHTS).is_symlink()
    assert (folder / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
    assert not list((tmp_path / "hub").rglob("blobs/*"))


def test_no_room_is_told_before_anything_large_is_fetched(hub, theirs, monkeypatch):
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda folder: SimpleNamespace(free=400_000_000))
    with pytest.raises(DiskFull, match="400 MB are free") as caught:
        download(NAME)
    assert "HF_HOME" in caught.value.remedy
    assert hub.downloads(WEIGHTS) == 0


def test_a_disk_that_fills_up_meanwhile_is_told(hub, theirs, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_receive", full)
    with pytest.raises(DiskFull, match="is full"):
        download(NAME)


def test_two_downloads_of_one_model_do_not_disturb_each_other(hub, theirs):
    repository = look_up(NAME)
    file = repository.files[WEIGHTS]
    lock = repository.folder.parent / ".locks" / repository.folder.name / f"{file.blob_name}.lock"
    lock.parent.mkdir(parents=True)
    with WeakFileLock(lock), pytest.raises(DownloadBusy, match="already"):
        download(NAME)


def test_a_gated_model_says_where_to_ask_and_comes_with_a_token(hub, theirs, monkeypatch):
    hub.repositories[NAME].gated = True
    with pytest.raises(AccessDenied, match="gated") as caught:
        download(NAME)
    assert f"{hub.address}/{NAME}" in caught.value.remedy
    assert "HF_TOKEN" in caught.value.remedy
    hub.valid_token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert (download(NAME) / WEIGHTS).exists()


def test_private_and_absent_models_are_not_found(hub, theirs):
    hub.repositories[NAME].private = True
    for name in (NAME, "org/absent"):
        with pytest.raises(ModelNotFound, match=name) as caught:
            download(name)
        assert "spelling" in caught.value.remedy
    with pytest.raises(ModelNotFound, match="not the name"):
        download("a/b/c")


@pytest.mark.parametrize(
    ("status", "error"), [(403, AccessDenied), (401, AccessDenied), (429, HubUnreachable), (503, HubUnreachable)]
)
def test_other_refusals_become_words(hub, theirs, status, error, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    repository = look_up(NAME)
    hub.status = status
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(error) as caught:
        downloading.fetch_all(plan_download_of(repository))
    assert caught.value.remedy


def plan_download_of(repository):
    weights = repository.files[WEIGHTS]
    return downloading.DownloadPlan(repository, (weights,), weights.nbytes, 0)


def test_offline_mode_is_respected(hub, theirs, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE") as caught:
        download(NAME)
    assert "Unset HF_HUB_OFFLINE" in caught.value.remedy
    assert not hub.requests


def test_no_network_is_told(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match="cannot be reached") as caught:
        download(NAME)
    assert "network" in caught.value.remedy


def test_loading_by_name_asks_nobody_and_says_how_to_get_the_model(hub, theirs):
    with pytest.raises(ModelNotFound, match=NAME) as caught:
        Engine.load(NAME)
    assert f"python launch.py models download {NAME}" in caught.value.remedy
    assert not hub.requests


def test_what_was_downloaded_is_loaded_by_name_and_computes_what_the_original_does(hub, tmp_path):
    folder = tiny_checkpoint("mixtral")
    hub.add(NAME, folder)
    download(NAME)
    asked = sum(hub.requests.values())
    with Engine.load(NAME, device="cpu", link="disk") as fetched, Engine.load(folder, device="cpu", link="disk") as own:
        assert fetched.model_name == NAME
        assert fetched.generate_ids([5, 6, 7], 8) == own.generate_ids([5, 6, 7], 8)
    assert sum(hub.requests.values()) == asked
