"""Every expert is found byte for byte, and every damaged checkpoint is named as such."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import ErnieFuseAndSplitTextVisionExperts, Transpose, WeightConverter

from engine.checkpoint import weight_groups
from engine.checkpoint.expert_index import ExpertIndex, ExpertKey
from engine.checkpoint.safetensors_header import INDEX_NAME, SINGLE_NAME, read_checkpoint_headers
from engine.checkpoint.skeleton import build_skeleton
from engine.checkpoint.tensor_reader import TensorReader
from engine.checkpoint.weight_groups import group_weights
from engine.errors import (
    CheckpointCorrupt,
    CheckpointUnreadable,
    EngineError,
    ModelNotFound,
    NotAMoeModel,
    UnsupportedModel,
)
from tests.naive_provider import read_expert
from tests.tiny_models import FAMILIES, tiny_checkpoint, tiny_model


def assert_experts_equal(index: ExpertIndex, model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Each expert's slot holds exactly the bytes of stock's fused parameters."""
    with TensorReader(index.files) as reader:
        for layer, name in enumerate(index.layer_names):
            experts = model.get_submodule(name)
            for expert in range(index.experts_per_layer[layer]):
                loaded = read_expert(index, reader, ExpertKey(layer, expert))
                assert set(loaded.tensors) == {key for key, _ in experts.named_parameters(recurse=False)}
                for key, tensor in loaded.tensors.items():
                    assert torch.equal(tensor, getattr(experts, key)[expert].to(dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_hold_the_experts_of_stock(family):
    index = ExpertIndex.from_checkpoint(tiny_checkpoint(family))
    assert_experts_equal(index, tiny_model(family), torch.float32)
    assert index.slot_bytes % 4096 == 0
    assert index.slot_bytes >= max(p.offset_bytes + p.nbytes for p in index.params(0))
    assert all(param.offset_bytes % 64 == 0 for param in index.params(0))


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "nemotron_h", "inkling2_text", "qwen3_moe"])
def test_parts_of_an_expert_in_several_shards(family):
    path = tiny_checkpoint(family, torch.bfloat16, sharded=True)
    index = ExpertIndex.from_checkpoint(path)
    keys = [
        ExpertKey(layer, expert)
        for layer in range(len(index.layer_names))
        for expert in range(index.experts_per_layer[layer])
    ]
    assert any(len({piece.file for piece in index.ranges(key)}) > 1 for key in keys)
    assert_experts_equal(index, tiny_model(family).to(torch.bfloat16), torch.bfloat16)


def test_byte_counts_add_up():
    path = tiny_checkpoint("qwen3_moe")
    index = ExpertIndex.from_checkpoint(path)
    experts = [p for name, p in tiny_model("qwen3_moe").named_parameters() if ".experts." in name]
    assert index.total_expert_bytes == sum(p.nbytes for p in experts)
    assert index.total_bytes == sum(t.nbytes for t in load_file(path / SINGLE_NAME).values())
    assert index.expert_bytes == index.total_expert_bytes // sum(index.experts_per_layer)
    assert index.top_k == 2
    assert index.experts_per_layer == (8, 8, 8)
    assert not index.needs_finish


def test_adjacent_parts_are_one_range():
    """Qwen3's down, gate and up projections of one expert follow each other in the file."""
    index = ExpertIndex.from_checkpoint(tiny_checkpoint("qwen3_moe"))
    for expert in range(8):
        (piece,) = index.ranges(ExpertKey(1, expert))
        assert piece.nbytes == index.expert_bytes


def test_transposed_experts_are_finished(tmp_path, monkeypatch):
    """Fused experts stored as [experts, in, out], as Qwen3-VL's are, with the converter that turns them."""
    path = _copy(tiny_checkpoint("granitemoe"), tmp_path / "model")
    fused = {"input_linear.weight": "experts.gate_up_proj", "output_linear.weight": "experts.down_proj"}
    tensors = {}
    for name, tensor in load_file(path / SINGLE_NAME).items():
        ending = next((ending for ending in fused if name.endswith(ending)), None)
        if ending is None:
            tensors[name] = tensor
        else:
            tensors[name.replace(ending, fused[ending])] = tensor.transpose(1, 2).contiguous()
    save_file(tensors, path / SINGLE_NAME, metadata={"format": "pt"})
    transposing = [WeightConverter(name, name, [Transpose(1, 2, check_dims=True)]) for name in fused.values()]
    known = weight_groups.get_model_conversion_mapping
    monkeypatch.setattr(weight_groups, "get_model_conversion_mapping", lambda model: [*known(model), *transposing])
    index = ExpertIndex.from_checkpoint(path)
    assert index.needs_finish
    assert_experts_equal(index, tiny_model("granitemoe"), torch.float32)


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return _copy(tiny_checkpoint("mixtral"), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path) -> Path:
    return _copy(tiny_checkpoint("mixtral", torch.bfloat16, sharded=True), tmp_path / "model")


def _without(path: Path, *missing: str) -> None:
    tensors = load_file(path / SINGLE_NAME)
    save_file({k: v for k, v in tensors.items() if k not in missing}, path / SINGLE_NAME, metadata={"format": "pt"})


def _edit_config(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def _refusal(path: Path, kind: type[EngineError]) -> str:
    with pytest.raises(kind) as caught:
        ExpertIndex.from_checkpoint(path)
    assert caught.value.cause and caught.value.remedy
    return caught.value.cause


def test_truncated_shard(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[3]
    whole = shard.stat().st_size
    with open(shard, "r+b") as stream:
        stream.truncate(whole - 10)
    cause = _refusal(sharded, CheckpointCorrupt)
    assert shard.name in cause and str(whole) in cause and str(whole - 10) in cause


@pytest.mark.parametrize("size", [0, 5, 40])
def test_file_cut_inside_its_header(checkpoint, size):
    with open(checkpoint / SINGLE_NAME, "r+b") as stream:
        stream.truncate(size)
    assert SINGLE_NAME in _refusal(checkpoint, CheckpointCorrupt)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[1]",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32"}}',
        b'{"a": 3}',
    ],
)
def test_senseless_header(checkpoint, header):
    (checkpoint / SINGLE_NAME).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    assert SINGLE_NAME in _refusal(checkpoint, CheckpointCorrupt)


def test_html_page_instead_of_weights(checkpoint):
    (checkpoint / SINGLE_NAME).write_text("<!DOCTYPE html><html>404 not found</html>" * 100)
    assert "not a safetensors file" in _refusal(checkpoint, CheckpointCorrupt)


def test_missing_shard(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[2]
    shard.unlink()
    assert shard.name in _refusal(sharded, CheckpointCorrupt)


def test_tensor_twice(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    tensors = load_file(second)
    with safe_open(first, "pt") as stream:
        name = next(iter(stream.keys()))
        tensors[name] = stream.get_tensor(name)
    save_file(tensors, second, metadata={"format": "pt"})
    cause = _refusal(sharded, CheckpointCorrupt)
    assert name in cause and first.name in cause and second.name in cause


def test_tensor_in_the_index_but_not_in_its_shard(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != name}, shard, metadata={"format": "pt"})
    cause = _refusal(sharded, CheckpointCorrupt)
    assert name in cause and shard.name in cause


def test_index_that_leaves_its_folder(sharded):
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = "../other/model.safetensors"
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    assert "outside" in _refusal(sharded, CheckpointCorrupt)


@pytest.mark.parametrize("part", ["w1", "w2"])
def test_missing_expert_tensor_is_named(checkpoint, part):
    names = [
        name for name in load_file(checkpoint / SINGLE_NAME) if f"layers.1.block_sparse_moe.experts.5.{part}" in name
    ]
    _without(checkpoint, *names)
    assert names[0] in _refusal(checkpoint, CheckpointCorrupt)


def test_missing_last_expert_tensor_is_named(checkpoint):
    name = "model.layers.2.block_sparse_moe.experts.7.w3.weight"
    _without(checkpoint, name)
    assert name in _refusal(checkpoint, CheckpointCorrupt)


def test_all_gates_of_a_layer_missing(checkpoint):
    names = [name for name in load_file(checkpoint / SINGLE_NAME) if "layers.1." in name and ".w1." in name]
    _without(checkpoint, *names)
    cause = _refusal(checkpoint, CheckpointCorrupt)
    assert "w1" in cause and "layers.1" in cause


def test_whole_layer_of_experts_missing(checkpoint):
    names = [name for name in load_file(checkpoint / SINGLE_NAME) if "layers.1.block_sparse_moe.experts" in name]
    _without(checkpoint, *names)
    assert "model.layers.1.mlp.experts" in _refusal(checkpoint, CheckpointCorrupt)


@pytest.mark.parametrize("change", [{"num_local_experts": 6}, {"num_local_experts": 9}, {"intermediate_size": 40}])
def test_config_of_another_model(checkpoint, change):
    _edit_config(checkpoint, **change)
    _refusal(checkpoint, CheckpointCorrupt)


def test_unreadable_file(checkpoint):
    (checkpoint / SINGLE_NAME).unlink()
    (checkpoint / SINGLE_NAME).mkdir()
    assert SINGLE_NAME in _refusal(checkpoint, CheckpointUnreadable)


def test_no_such_folder(tmp_path):
    assert "nowhere" in _refusal(tmp_path / "nowhere", ModelNotFound)


def test_folder_without_config(checkpoint):
    (checkpoint / "config.json").unlink()
    assert "config.json" in _refusal(checkpoint, ModelNotFound)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "mixtral", "num_attention_heads": "many"}'])
def test_broken_config(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    assert "config.json" in _refusal(checkpoint, CheckpointCorrupt)


def test_unknown_architecture(checkpoint):
    _edit_config(checkpoint, model_type="mixtral_from_the_future", auto_map={"AutoConfig": "evil.Config"})
    assert "mixtral_from_the_future" in _refusal(checkpoint, UnsupportedModel)


def test_quantised_checkpoint(checkpoint):
    _edit_config(checkpoint, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert "fp8" in _refusal(checkpoint, UnsupportedModel)


def test_experts_in_an_integer_type(checkpoint):
    tensors = load_file(checkpoint / SINGLE_NAME)
    tensors = {name: (t.to(torch.int8) if ".experts." in name else t) for name, t in tensors.items()}
    save_file(tensors, checkpoint / SINGLE_NAME, metadata={"format": "pt"})
    assert "int8" in _refusal(checkpoint, UnsupportedModel)


def test_weights_in_another_format(checkpoint):
    (checkpoint / SINGLE_NAME).rename(checkpoint / "pytorch_model.bin")
    assert "pytorch_model.bin" in _refusal(checkpoint, UnsupportedModel)


def test_no_weights(checkpoint):
    (checkpoint / SINGLE_NAME).unlink()
    _refusal(checkpoint, CheckpointCorrupt)


def test_dense_model_is_not_moe(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    assert "not a Mixture-of-Experts" in _refusal(tmp_path / "llama", NotAMoeModel)


def test_experts_off_the_interface(checkpoint):
    config = {"model_type": "jetmoe", "num_hidden_layers": 1, "hidden_size": 32, "num_local_experts": 4}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert "jetmoe" in _refusal(checkpoint, UnsupportedModel)


def test_experts_of_several_modules_in_one_list(checkpoint):
    """Ernie-VL's converter splits one list of experts between two modules: refused, not misread."""
    skeleton, headers = build_skeleton(checkpoint), read_checkpoint_headers(checkpoint)
    groups = group_weights(skeleton.model, headers.tensors)
    target = f"{skeleton.experts[0].name}.down_proj"
    groups[target].converter = WeightConverter(
        "experts.*.w2.weight", ["a.down_proj", "b.down_proj"], [ErnieFuseAndSplitTextVisionExperts(0, 1)]
    )
    with pytest.raises(UnsupportedModel):
        ExpertIndex(skeleton, headers, groups)


def test_finish_leaves_ordered_bytes_alone():
    index = ExpertIndex.from_checkpoint(tiny_checkpoint("mixtral"))
    slot = np.random.default_rng(0).integers(0, 255, index.slot_bytes, dtype=np.uint8)
    before = slot.copy()
    index.finish(ExpertKey(0, 0), slot)
    assert np.array_equal(slot, before)
