"""A model loaded without its experts computes what stock transformers computes."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

from engine.checkpoint.dense_model import DenseModel, load_dense
from engine.checkpoint.expert_index import ExpertKey
from engine.checkpoint.safetensors_header import SINGLE_NAME
from engine.checkpoint.skeleton import build_skeleton
from engine.checkpoint.tensor_reader import TensorReader
from engine.errors import CheckpointCorrupt, CheckpointUnreadable, NotAMoeModel, UnsupportedModel
from engine.model.experts import attach
from engine.model.stored_linear import StoredEmbedding, StoredLinear
from tests.naive_provider import NaiveProvider
from tests.tiny_models import EOS_TOKEN_ID, FAMILIES, auto_class, tiny_checkpoint, tiny_config

PROMPT = torch.randint(4, 150, (1, 20), generator=torch.Generator().manual_seed(5))
DECODE_STEPS = 4
TOLERANCE = 1e-4  # of the logits' norm
MIB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products this small only lose by sharing work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stock_model(path: Path, model_class: type = AutoModelForCausalLM) -> nn.Module:
    return model_class.from_pretrained(path, dtype=torch.float32, experts_implementation="eager").eval()


def load_with_experts(path: Path) -> DenseModel:
    dense = load_dense(path)
    attach(dense.experts_modules, NaiveProvider(dense.index))
    return dense


@torch.inference_mode()
def logits_of(model: nn.Module) -> list[torch.Tensor]:
    """Logits of the prompt, then of greedy decoding with the model's own cache."""
    out = model(PROMPT, use_cache=True)
    logits = [out.logits[0]]
    for _ in range(DECODE_STEPS):
        token = logits[-1][-1:].argmax(-1, keepdim=True)
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0])
    return logits


def assert_same_logits(ours: nn.Module, stock: nn.Module) -> None:
    for got, expected in zip(logits_of(ours), logits_of(stock), strict=True):
        assert (got - expected).norm() <= TOLERANCE * expected.norm()


def assert_complete(dense: DenseModel) -> None:
    assert not any(t.is_meta for t in (*dense.model.parameters(), *dense.model.buffers()))
    assert not any(list(module.parameters(recurse=False)) for module in dense.experts_modules)
    assert dense.resident_bytes == dense.index.dense_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_stock_from_bf16_shards(family):
    path = tiny_checkpoint(family, torch.bfloat16, sharded=True)
    dense = load_with_experts(path)
    assert_complete(dense)
    assert_same_logits(dense.model, stock_model(path, auto_class(family)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "granitemoe", "nemotron_h", "gpt_oss", "jamba"])
def test_logits_equal_stock_in_other_types(family, dtype):
    path = tiny_checkpoint(family, dtype)
    dense = load_with_experts(path)
    assert_complete(dense)
    assert_same_logits(dense.model, stock_model(path))


def test_text_part_of_an_image_and_text_checkpoint(tmp_path):
    """The hub's Qwen3.5 checkpoints hold a vision tower and prefix the text model's names."""
    text = {**tiny_config("qwen3_5_moe_text").to_dict(), "model_type": "qwen3_5_moe_text"}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    torch.manual_seed(0)
    config = Qwen3_5MoeConfig(text_config=text, vision_config={**vision, "num_position_embeddings": 16})
    Qwen3_5MoeForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    dense = load_with_experts(tmp_path / "model")
    assert_complete(dense)
    assert dense.index.dense_bytes + dense.index.total_expert_bytes < dense.index.total_bytes  # no vision tower
    assert_same_logits(dense.model, stock_model(tmp_path / "model"))


def test_linear_and_embedding_weights_keep_the_checkpoints_type():
    model = load_dense(tiny_checkpoint("mixtral", torch.bfloat16)).model
    stored = [module for module in model.modules() if isinstance(module, (StoredLinear, StoredEmbedding))]
    assert len(stored) == 3 * 4 + 2
    assert all(module.weight.dtype == torch.bfloat16 for module in stored)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.dtype == torch.float32


def test_weights_that_code_handles_itself_are_float32():
    """Jamba multiplies with `dt_proj.weight` itself: a bf16 weight there would break or round the computation."""
    model = load_dense(tiny_checkpoint("jamba", torch.bfloat16)).model
    projections = [module for name, module in model.named_modules() if name.endswith("dt_proj")]
    assert projections
    assert all(type(module) is nn.Linear and module.weight.dtype == torch.float32 for module in projections)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_weights_share_memory(dtype):
    model = load_dense(tiny_checkpoint("qwen2_moe", dtype)).model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert embedding.weight.data_ptr() == head.weight.data_ptr()
    assert embedding.weight.dtype == dtype


def test_no_expert_byte_is_read(monkeypatch):
    path = tiny_checkpoint("qwen3_moe", torch.bfloat16, sharded=True)
    reads: list[tuple[int, int, int]] = []
    read_into = TensorReader.read_into

    def recording(self, target, file, offset):
        reads.append((file, offset, offset + len(target)))
        read_into(self, target, file, offset)

    monkeypatch.setattr(TensorReader, "read_into", recording)
    index = load_dense(path).index
    assert sum(end - start for _, start, end in reads) == index.total_bytes - index.total_expert_bytes
    for layer, experts in enumerate(index.experts_per_layer):
        for expert in range(experts):
            for piece in index.ranges(ExpertKey(layer, expert)):
                for file, start, end in reads:
                    assert file != piece.file or end <= piece.offset or start >= piece.offset + piece.nbytes


def test_progress_counts_the_dense_bytes():
    calls = []
    index = load_dense(tiny_checkpoint("mixtral"), on_progress=lambda *call: calls.append(call)).index
    totals = {total for _, _, total in calls}
    assert totals == {index.total_bytes - index.total_expert_bytes}
    done = [done for _, done, _ in calls]
    assert done == sorted(done) and done[-1] == totals.pop()


def test_nothing_is_printed_and_verbosity_is_restored(capfd):
    from transformers.utils import logging

    before = logging.get_verbosity()
    load_dense(tiny_checkpoint("mixtral"))
    assert logging.get_verbosity() == before
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_model_is_ready_to_generate():
    model = load_dense(tiny_checkpoint("mixtral")).model
    assert model.generation_config.eos_token_id == EOS_TOKEN_ID
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_saving_is_refused(tmp_path):
    model = load_dense(tiny_checkpoint("mixtral")).model
    with pytest.raises(UnsupportedModel):
        model.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.layers.1.self_attn.q_proj.weight"])
def test_missing_dense_tensor_is_named(tmp_path, name):
    path = shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "model")
    tensors = load_file(path / SINGLE_NAME)
    del tensors[name]
    save_file(tensors, path / SINGLE_NAME, metadata={"format": "pt"})
    with pytest.raises(CheckpointCorrupt, match=name):
        load_dense(path)


def test_dense_tensor_of_another_shape_is_named(tmp_path):
    path = shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "model")
    tensors = load_file(path / SINGLE_NAME)
    tensors["model.norm.weight"] = torch.ones(31)
    save_file(tensors, path / SINGLE_NAME, metadata={"format": "pt"})
    with pytest.raises(CheckpointCorrupt, match=r"model\.norm\.weight"):
        load_dense(path)


def test_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    path = shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "model")
    enter = TensorReader.__enter__

    def shrink_first(self):
        os.truncate(path / SINGLE_NAME, 9000)
        return enter(self)

    monkeypatch.setattr(TensorReader, "__enter__", shrink_first)
    with pytest.raises(CheckpointCorrupt, match="has no byte"):
        load_dense(path)


def test_read_error_is_reported(monkeypatch):
    def failing(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointUnreadable, match="Input/output error"):
        load_dense(tiny_checkpoint("mixtral"))


def test_no_file_stays_open_or_mapped(tmp_path):
    path = shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "model")
    before = len(os.listdir("/proc/self/fd"))
    dense = load_dense(path)
    assert len(os.listdir("/proc/self/fd")) == before
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert dense.model is not None


def test_no_moe_in_words(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, vocab_size=32, **sizes)).save_pretrained(tmp_path / "llama")
    with pytest.raises(NotAMoeModel):
        load_dense(tmp_path / "llama")


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def test_memory_while_and_after_loading(tmp_path):
    """200 MB of dense bf16 weights: neither a float32 copy nor mapped files on top of them."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**{**tiny_config("mixtral").to_dict(), "vocab_size": 400_000, "hidden_size": 128})
    with torch.device("meta"):
        model = MixtralForCausalLM(config)
    tensors = {name: torch.zeros(p.shape, dtype=torch.bfloat16) for name, p in model.named_parameters()}
    skeleton_path = tmp_path / "model"
    config.save_pretrained(skeleton_path)
    save_file(tensors, skeleton_path / SINGLE_NAME, metadata={"format": "pt"})
    del tensors, model
    load_dense(tiny_checkpoint("mixtral"))  # lazy imports are not this model's memory
    Path("/proc/self/clear_refs").write_text("5")  # start a new peak
    before = _memory("VmRSS")
    dense = load_dense(skeleton_path)
    assert dense.index.dense_bytes > 190 * MIB
    assert _memory("VmHWM") - before < dense.index.dense_bytes + 64 * MIB
    assert _memory("VmRSS") - before < dense.index.dense_bytes + 32 * MIB


def test_threads_that_look_at_models_at_once_leave_the_library_as_it_was():
    tie_weights, linspace = PreTrainedModel.tie_weights, torch.linspace
    paths = [tiny_checkpoint(family) for family in ("mixtral", "olmoe", "granitemoe")]

    def look() -> None:
        for _ in range(4):
            for path in paths:
                build_skeleton(path)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert PreTrainedModel.tie_weights is tie_weights
    assert torch.linspace is linspace and torch.get_default_dtype() == torch.float32
