"""What is listed, found by name and deleted, over good and broken folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.checkpoint import builtin, catalog
from engine.checkpoint.catalog import (
    delete_model,
    describe_model,
    find_deletable,
    find_model,
    list_models,
    resolve_model,
    scan_models,
)
from engine.errors import InvalidSetting, ModelNotFound, UnsupportedModel
from engine.paths import models_dir
from tests.tiny_models import tiny_checkpoint, tiny_config


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Folders of its own, and an empty Hugging Face cache."""
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path / "home"))
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(cache), raising=False)
    return tmp_path


def put(name: str, family: str = "mixtral") -> Path:
    folder = models_dir() / name
    shutil.copytree(tiny_checkpoint(family), folder)
    return folder


def put_in_hugging_face_cache(home: Path, repository: str, revisions: dict[str, Path]) -> None:
    repo = home / "hub" / f"models--{repository.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, (reference, content) in enumerate(revisions.items()):
        commit = f"{number:040x}"
        (repo / "refs" / reference).write_text(commit)
        shutil.copytree(content, repo / "snapshots" / commit)


def names(models) -> list[str]:
    return [model.name for model in models]


def test_a_fresh_machine_has_the_built_in_model_to_build():
    (demo,) = list_models()
    assert (demo.name, demo.source, demo.is_ready, demo.bytes) == ("demo", "built-in", False, None)
    assert find_model("demo") is None


def test_numbers_come_from_config_and_headers():
    folder = put("mine")
    mine = list_models()[1]
    config = tiny_config("mixtral")
    expert = 3 * config.hidden_size * config.intermediate_size * 4
    assert mine.name == "mine"
    assert mine.path == folder
    assert mine.architecture == "MixtralForCausalLM"
    assert mine.expert_bytes == expert
    assert (mine.experts_per_layer, mine.experts_per_token) == (config.num_local_experts, config.num_experts_per_tok)
    assert mine.moe_layers == config.num_hidden_layers
    stored = (folder / "model.safetensors").stat().st_size
    assert stored - 20_000 < mine.bytes < stored
    assert json.loads(json.dumps(mine.to_dict()))["path"] == str(folder)


def test_weights_are_not_read(monkeypatch):
    folder = put("mine")
    before = describe_model("mine", folder, "")
    file = folder / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    with file.open("r+b") as stream:  # a hole where the weights were: same size, nothing in it
        size = file.stat().st_size
        stream.truncate(header)
        stream.truncate(size)
    assert describe_model("mine", folder, "") == before


def test_broken_checkpoints_are_named_with_their_cause():
    truncated, half, bad_config = put("truncated"), put("half"), put("bad-config")
    with (truncated / "model.safetensors").open("r+b") as stream:
        stream.truncate(5000)
    (half / "model.safetensors").unlink()
    (bad_config / "config.json").write_text("{")
    put("good")
    models, unusable = scan_models()
    assert names(models) == ["demo", "good"]
    causes = {model.name: model.cause for model in unusable}
    assert "truncated" in causes["truncated"]
    assert "holds no weights" in causes["half"]
    assert "not valid JSON" in causes["bad-config"]
    assert all(model.remedy for model in unusable)


def test_what_is_not_a_finished_model_is_not_listed():
    put(".building-something")
    put(f"{builtin.BUILTIN_NAME}-v0-00000000")
    (models_dir() / "notes").mkdir()
    (models_dir() / "file").write_text("")
    assert names(list_models()) == ["demo"]
    assert scan_models()[1] == []


def test_a_dense_model_is_called_that():
    folder = put("dense")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    models, (problem,) = scan_models()
    assert names(models) == ["demo"]
    assert problem.name == "dense"
    assert "expert" in problem.cause


def test_models_of_the_hugging_face_cache(home):
    older = put("older", "olmoe")
    put_in_hugging_face_cache(home, "org/moe", {"main": tiny_checkpoint("mixtral"), "other": older})
    dense = home / "dense"
    dense.mkdir()
    (dense / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    put_in_hugging_face_cache(home, "org/dense", {"main": dense})
    shutil.rmtree(older)
    models, unusable = scan_models()
    assert names(models) == ["demo", "org/moe"]
    assert models[1].architecture == "MixtralForCausalLM"
    assert unusable == []
    assert resolve_model("org/moe") == models[1].path


def test_names_and_paths_are_resolved(monkeypatch, home):
    folder = put("mine")
    assert resolve_model("mine") == folder
    assert resolve_model(folder) == folder.resolve()
    monkeypatch.chdir(folder.parent)
    assert resolve_model("./mine") == folder.resolve()


def test_demo_is_built_when_it_is_asked_for(monkeypatch, home):
    stages = []
    monkeypatch.setattr(builtin, "ensure_builtin", lambda report: report("building", 1, 2) or home)
    assert resolve_model("demo", lambda *stage: stages.append(stage)) == home
    assert stages == [("building", 1, 2)]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("org/name", "python launch.py models download org/name"),
        ("/no/where", "path"),
        ("../up", "path"),
        ("mispelt", "spelling"),
    ],
)
def test_what_is_not_there_says_how_to_get_it(name, remedy):
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(name)
    assert name in caught.value.cause
    assert remedy in caught.value.remedy


def test_a_file_is_not_a_model():
    folder = put("mine")
    with pytest.raises(ModelNotFound, match="is a file") as caught:
        resolve_model(folder / "config.json")
    assert str(folder) in caught.value.remedy


def test_deleting_frees_the_space():
    folder = put("mine")
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert delete_model("mine") == size
    assert list(models_dir().iterdir()) == []


def test_a_deletion_cut_short_leaves_no_model_and_the_next_one_clears_it(monkeypatch):
    put("mine")
    put("other")

    def fail(folder):
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "_remove", fail)
        with pytest.raises(OSError, match="power cut"):
            delete_model("mine")
    assert names(list_models()) == ["demo", "other"]
    delete_model("other")
    assert list(models_dir().iterdir()) == []


def test_a_linked_folder_is_unlinked_not_emptied(home):
    theirs = home / "theirs"
    shutil.copytree(tiny_checkpoint("mixtral"), theirs)
    models_dir().mkdir(parents=True)
    (models_dir() / "linked").symlink_to(theirs)
    delete_model("linked")
    assert (theirs / "model.safetensors").exists()
    assert list(models_dir().iterdir()) == []


@pytest.mark.parametrize("name", ["absent", "demo", "..", ".", "", "../home", "/"])
def test_only_models_of_our_own_folder_can_be_deleted(name):
    put("mine")
    with pytest.raises(ModelNotFound):
        find_deletable(name)


def test_the_shared_cache_is_left_to_its_own_tool(home):
    put_in_hugging_face_cache(home, "org/moe", {"main": tiny_checkpoint("mixtral")})
    with pytest.raises(InvalidSetting, match="other programs use") as caught:
        delete_model("org/moe")
    assert "hf cache" in caught.value.remedy


def test_a_model_that_was_only_looked_at_is_not_listed(home):
    looked_at = home / "looked-at"
    looked_at.mkdir()
    shutil.copy(tiny_checkpoint("mixtral") / "config.json", looked_at)
    put_in_hugging_face_cache(home, "org/moe", {"main": looked_at})
    models, unusable = scan_models()
    assert names(models) == ["demo"]
    assert unusable == []
    with pytest.raises(ModelNotFound, match="no model 'org/moe'") as caught:
        find_model("org/moe")
    assert "python launch.py models download org/moe" in caught.value.remedy


def test_an_unfinished_download_says_how_to_finish_it(home):
    half = home / "half"
    shutil.copytree(tiny_checkpoint("mixtral", sharded=True), half)
    sorted(half.glob("*.safetensors"))[0].unlink()
    put_in_hugging_face_cache(home, "org/moe", {"main": half})
    models, (unusable,) = scan_models()
    assert names(models) == ["demo"]
    assert "not finished" in unusable.cause
    with pytest.raises(ModelNotFound, match="only a part") as caught:
        resolve_model("org/moe")
    assert "python launch.py models download org/moe" in caught.value.remedy


def test_a_newer_commit_that_is_not_whole_does_not_hide_the_one_that_is(home):
    looked_at = home / "looked-at"
    looked_at.mkdir()
    shutil.copy(tiny_checkpoint("mixtral") / "config.json", looked_at)
    put_in_hugging_face_cache(home, "org/moe", {"v1": tiny_checkpoint("mixtral"), "main": looked_at})
    assert names(list_models()) == ["demo", "org/moe"]
    assert find_model("org/moe").name == f"{0:040x}"


def test_a_gguf_file_is_refused_with_the_reason(home):
    file = home / "model-q4.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModel, match="as a whole") as caught:
        find_model(file)
    assert "safetensors" in caught.value.remedy
