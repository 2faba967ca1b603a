"""gpt-oss' own format: experts stay packed in their slots, and the ids are those of stock transformers on the
unpacked weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from engine.checkpoint.dense_model import open_checkpoint
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.safetensors_header import SINGLE_NAME
from engine.engine import Engine
from engine.errors import InvalidSetting, UnsupportedModel
from tests.engine.oracle import Stock, assert_same_greedy, assert_same_logits
from tests.tiny_models import EOS_TOKEN_ID, _randomise, tiny_checkpoint, tiny_config

EXPERTS, HIDDEN, INNER = 8, 32, 64
PROMPT = list(range(20, 50))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint with packed experts, and the same model in fp32."""
    plain, packed = (tmp_path_factory.mktemp("gpt-oss") / name for name in ("plain", "packed"))
    torch.manual_seed(0)
    config = tiny_config("gpt_oss")
    config.intermediate_size = INNER
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(model)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=EOS_TOKEN_ID, pad_token_id=0)
    stored = {}
    for layer in range(config.num_hidden_layers):
        experts = model.model.layers[layer].mlp.experts
        for name, outputs, inputs in (("gate_up_proj", 2 * INNER, HIDDEN), ("down_proj", HIDDEN, INNER)):
            blocks = torch.randint(256, (EXPERTS, outputs, inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(121, 126, (EXPERTS, outputs, inputs // 32), dtype=torch.uint8)
            unpacked = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            getattr(experts, name).data.copy_(unpacked)
            prefix = f"model.layers.{layer}.mlp.experts.{name}"
            stored |= {f"{prefix}_blocks": blocks, f"{prefix}_scales": scales}
    model.save_pretrained(plain)
    shutil.copytree(plain, packed)
    kept = {key: t for key, t in load_file(plain / SINGLE_NAME).items() if not key.endswith(("up_proj", "down_proj"))}
    save_file(kept | stored, packed / SINGLE_NAME, metadata={"format": "pt"})
    edit_config(packed, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return packed, plain


def edit_config(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_ids_are_those_of_stock_on_the_unpacked_weights(folders):
    packed, plain = folders
    stock = Stock(plain)
    for budget in ("1%", "25%", "100%"):
        with Engine.load(packed, budget=budget) as engine:
            ids = engine.generate_ids(PROMPT, 8)
            assert_same_greedy(ids, stock.greedy(PROMPT, 8), PROMPT, stock)
            assert_same_logits(engine.logits(PROMPT), stock.logits(PROMPT))
            assert engine.plan.precision == "native"


def test_slots_stay_packed(folders):
    packed, plain = (ExpertIndex.from_checkpoint(path) for path in folders)
    assert packed.is_packed and not plain.is_packed
    assert packed.weights_per_expert(0) == plain.weights_per_expert(0)
    numbers = 3 * HIDDEN * INNER
    biases = 4 * (2 * INNER + HIDDEN)
    assert packed.expert_bytes == numbers // 2 + numbers // 32 + biases
    assert plain.expert_bytes == 4 * numbers + biases


def test_they_are_not_quantised_again(folders):
    with pytest.raises(InvalidSetting, match="few bits already"):
        Engine.load(folders[0], precision="nf4")


def test_packed_experts_of_an_unknown_form_are_refused(tmp_path):
    path = Path(shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "model"))
    edit_config(path, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(UnsupportedModel, match="mxfp4"):
        open_checkpoint(path)


def test_packed_experts_without_a_word_in_the_config_are_refused(folders, tmp_path):
    path = Path(shutil.copytree(folders[0], tmp_path / "model"))
    edit_config(path, quantization_config=None)
    with pytest.raises(UnsupportedModel, match="uint8"):
        open_checkpoint(path)
