"""What is known of a model before its weights are here, held to the published models and to the files themselves."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from engine.checkpoint.estimate import estimate_config, estimate_folder, estimate_repository
from engine.checkpoint.hub.repository import look_up
from engine.errors import CheckpointCorrupt, ModelNotFound, NotAMoeModel, UnsupportedModel
from engine.hardware.memory_plan import GIB, make_plan
from tests.checkpoint.real_models import (
    GPT_OSS_20B,
    OLMOE_1B_7B,
    QWEN3_30B_A3B,
    REAL_MODELS,
    RealModel,
)
from tests.fake_hub import HubFile, HubRepository
from tests.tiny_models import tiny_checkpoint

NAME = "org/moe"
TOLERANCE = 0.01
DENSE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_local_experts": 1}


def serve_hollow(hub, model: RealModel) -> None:
    """The published model's config, index and headers; its weights are zeros that nobody asks for."""
    files = {"config.json": plain(json.dumps(model.config).encode())}
    for name, content in model.header_files().items():
        files[name] = HubFile(content.start, content.size, True) if name.endswith("s") else plain(content.start)
    hub.repositories[model.name] = HubRepository(files)


def numbers(footprint) -> dict[str, int]:
    return {name: value for name, value in asdict(footprint).items() if isinstance(value, int)}


def plain(content: bytes) -> HubFile:
    return HubFile(content, len(content), False)


def copy_of(family: str, folder: Path, **more_config) -> Path:
    shutil.copytree(tiny_checkpoint(family), folder)
    config = json.loads((folder / "config.json").read_text()) | more_config
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("model", REAL_MODELS, ids=lambda model: model.name)
def test_what_the_index_says_of_a_published_model_agrees_with_its_skeleton(hub, model):
    serve_hollow(hub, model)
    from_index = estimate_repository(look_up(model.name))
    from_config = estimate_config(model.name, from_index.folder)
    assert from_index.from_headers
    assert not from_config.from_headers
    assert from_index.total_parameters == from_config.total_parameters == model.parameters
    assert from_index.active_parameters < model.parameters / 3
    for context_length in (2048, 4096):
        index, skeleton = (numbers(one.footprint(context_length)) for one in (from_index, from_config))
        assert index == pytest.approx(skeleton, rel=TOLERANCE)
        assert index["model_bytes_total"] == model.total_bytes
        for free in (24 * GIB, 64 * GIB, 256 * GIB):
            plans = [make_plan(one.footprint(context_length), "auto", free) for one in (from_index, from_config)]
            assert plans[0].near_bytes_total == pytest.approx(plans[1].near_bytes_total, rel=TOLERANCE)
            assert plans[0].slots == pytest.approx(plans[1].slots, rel=TOLERANCE, abs=1)
    assert sum(range_.endswith("-") for range_ in hub.ranges) == 0  # no file was fetched whole


def test_tensors_without_a_conversion_are_not_tried_out(hub, monkeypatch):
    """Stand-ins of mxfp4 blocks have millions of numbers, since their dimensions have no large common divisor."""

    def tried_out(*arguments):
        raise AssertionError("a tensor that is taken as it is was converted to see what becomes of it")

    monkeypatch.setattr("engine.checkpoint.converter_probe._probe", tried_out)
    serve_hollow(hub, GPT_OSS_20B)
    assert estimate_repository(look_up(GPT_OSS_20B.name)).index.is_packed


def test_memory_is_reckoned_with_all_parameters_not_with_the_active_ones(hub):
    serve_hollow(hub, QWEN3_30B_A3B)
    found = estimate_repository(look_up(QWEN3_30B_A3B.name))
    needs = found.footprint(2048)
    assert needs.experts_total * needs.slot_bytes + needs.dense_bytes > 60e9
    assert 3.2e9 < found.active_parameters < 3.5e9  # "A3B"
    assert make_plan(needs, "auto", 24 * GIB).expert_share < 0.4


@pytest.mark.parametrize(("precision", "shares"), [("int8", (0.5, 0.55)), ("nf4", (0.25, 0.30))])
def test_what_fewer_bits_would_need_is_known_too(hub, precision, shares):
    serve_hollow(hub, OLMOE_1B_7B)
    native = estimate_repository(look_up(OLMOE_1B_7B.name))
    packed = native.at_precision(precision)
    assert shares[0] < packed.footprint(2048).slot_bytes / native.footprint(2048).slot_bytes < shares[1]
    assert packed.footprint(2048).dense_bytes == native.footprint(2048).dense_bytes
    assert native.at_precision("auto") is native


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_headers_on_the_hub_say_what_the_files_say(hub, family, sharded):
    folder = tiny_checkpoint(family, sharded=sharded)
    hub.add(NAME, folder)
    remote, local = estimate_repository(look_up(NAME)), estimate_folder(NAME, folder)
    assert remote.footprint(512) == local.footprint(512)
    assert [file.name for file in remote.index.files] == [file.name for file in local.index.files]
    assert remote.index.ranges((1, 3)) == local.index.ranges((1, 3))
    assert remote.total_parameters == local.total_parameters
    assert remote.architecture == local.architecture
    assert not remote.is_here
    assert local.is_here


@pytest.mark.parametrize(
    ("family", "config", "error", "words"),
    [
        ("mixtral", {"model_type": "never_heard_of"}, UnsupportedModel, "does not know the architecture"),
        ("mixtral", DENSE, NotAMoeModel, "org/moe"),
        ("mixtral", {"quantization_config": {"quant_method": "gptq"}}, UnsupportedModel, "org/moe is quantised"),
        ("mixtral", {"num_local_experts": "many"}, CheckpointCorrupt, "org/moe's config.json"),
    ],
)
def test_what_cannot_be_run_is_told_before_the_download(hub, tmp_path, family, config, error, words):
    hub.add(NAME, copy_of(family, tmp_path / "theirs", **config))
    with pytest.raises(error, match=words) as caught:
        estimate_repository(look_up(NAME))
    assert str(tmp_path) not in caught.value.cause
    assert caught.value.remedy
    assert hub.downloads("model.safetensors") == 0


@pytest.mark.parametrize(
    ("file_name", "words"), [("model-q4.gguf", "GGUF"), ("pytorch_model.bin", "not in safetensors")]
)
def test_other_formats_are_refused_with_the_way_out(hub, tmp_path, file_name, words):
    theirs = copy_of("mixtral", tmp_path / "theirs")
    (theirs / "model.safetensors").rename(theirs / file_name)
    hub.add(NAME, theirs)
    with pytest.raises(UnsupportedModel, match=words) as caught:
        estimate_repository(look_up(NAME))
    assert "safetensors version" in caught.value.remedy
    (theirs / "config.json").unlink()  # as most repositories of GGUF files
    hub.add(NAME, theirs)
    with pytest.raises(UnsupportedModel, match=words):
        estimate_repository(look_up(NAME))


def test_a_repository_that_is_no_model_is_called_that(hub, tmp_path):
    theirs = copy_of("mixtral", tmp_path / "theirs")
    (theirs / "model.safetensors").unlink()
    hub.add(NAME, theirs)
    with pytest.raises(CheckpointCorrupt, match="holds no weights"):
        estimate_repository(look_up(NAME))
    (theirs / "config.json").unlink()
    hub.add(NAME, theirs)
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        estimate_repository(look_up(NAME))


def test_a_shard_shorter_than_its_header_is_found_out(hub):
    repository = hub.add(NAME, tiny_checkpoint("mixtral"))
    whole = repository.files["model.safetensors"]
    repository.files["model.safetensors"] = HubFile(whole.start[:-20_000], whole.size - 20_000, True)
    with pytest.raises(CheckpointCorrupt, match="shorter than its header"):
        estimate_repository(look_up(NAME))
