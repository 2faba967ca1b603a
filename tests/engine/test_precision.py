"""Lossy precisions lose what quantising loses and nothing more: whatever the budget, the ids are those that stock
transformers generates from the dequantised weights."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type, int8_vectorwise_dequant

from engine.checkpoint.dense_model import open_checkpoint
from engine.checkpoint.expert_key import ExpertKey
from engine.checkpoint.quantised import QuantisedIndex, ensure_quantised, plan_quantised
from engine.checkpoint.tensor_reader import TensorReader
from engine.engine import Engine
from engine.errors import InvalidSetting
from engine.paths import HOME_VARIABLE
from tests.engine.oracle import Stock, assert_same_greedy, assert_same_logits
from tests.naive_provider import read_expert
from tests.tiny_models import VOCAB_SIZE, tiny_checkpoint

FAMILIES = (
    "mixtral",
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "phimoe",
    "glm4_moe",
    "ernie4_5_moe",
    "granitemoe",
    "gpt_oss",
    "nemotron_h",
)
PRECISIONS = ("native", "int8", "nf4")
BUDGETS = ("1%", "25%", "100%")
NEW_TOKENS = 4


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
        yield


def prompt() -> list[int]:
    return torch.randint(5, VOCAB_SIZE, (23,), generator=torch.Generator().manual_seed(1)).tolist()


def dequantised(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Parameter `name` [outputs, padded inputs], by bitsandbytes' own functions."""
    numbers, scales = tensors[name], tensors[f"{name}_scales"]
    if numbers.dtype == torch.int8:
        return int8_vectorwise_dequant(numbers, scales.flatten() * 127)
    shape = torch.Size((numbers.shape[0], 2 * numbers.shape[1]))
    state = QuantState(scales.flatten(), shape, get_4bit_type("nf4", device="cpu"), 64, "nf4", torch.float32)
    return dequantize_4bit(numbers.reshape(-1, 1), state)


@torch.no_grad()
def put_dequantised_experts(stock: Stock, index: QuantisedIndex) -> None:
    with TensorReader(index.files) as reader:
        for layer, name in enumerate(index.layer_names):
            module = stock._model.get_submodule(name)
            for expert in range(index.experts_per_layer[layer]):
                tensors = read_expert(index, reader, ExpertKey(layer, expert)).tensors
                for parameter, stacked in module.named_parameters(recurse=False):
                    if f"{parameter}_scales" not in tensors:
                        assert torch.equal(tensors[parameter], stacked[expert])
                        continue
                    rows = dequantised(tensors, parameter)
                    target = stacked[expert].t() if module.is_transposed else stacked[expert]
                    assert 0 < (target - rows[:, : target.shape[1]]).norm() < 0.1 * target.norm()
                    target.copy_(rows[:, : target.shape[1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_caching_loses_nothing_on_top_of_quantising(family):
    path = tiny_checkpoint(family)
    stock = Stock(path)
    for precision in PRECISIONS:
        if precision != "native":
            index = ensure_quantised(plan_quantised(open_checkpoint(path), precision))
            put_dequantised_experts(stock, index)
        answer, logits = stock.greedy(prompt(), NEW_TOKENS), stock.logits(prompt())
        for budget in BUDGETS:
            with Engine.load(path, budget=budget, precision=precision) as engine:
                assert_same_greedy(engine.generate_ids(prompt(), NEW_TOKENS), answer, prompt(), stock)
                assert_same_logits(engine.logits(prompt()), logits)


def test_auto_is_never_lossy():
    with (
        Engine.load(tiny_checkpoint("mixtral")) as auto,
        Engine.load(tiny_checkpoint("mixtral"), precision="nf4") as nf4,
    ):
        stock = Stock(tiny_checkpoint("mixtral"))
        assert_same_logits(auto.logits(prompt()), stock.logits(prompt()))
        with pytest.raises(AssertionError):
            assert_same_logits(nf4.logits(prompt()), stock.logits(prompt()))


def test_an_unknown_precision_is_refused_before_anything_is_read():
    with pytest.raises(InvalidSetting, match="int4"):
        Engine.load("no such model", precision="int4")
