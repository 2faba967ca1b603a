"""The engine's path for cards, on a made-up card: stock transformers' answers in the checkpoint's dtype."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.cache.host_compute import HostCompute
from engine.checkpoint.storage_plan import resident_bytes
from engine.engine import Engine
from engine.errors import DeviceNotAvailable, InvalidSetting
from engine.placement import place
from tests.engine.fake_card import card  # noqa: F401 - a fixture
from tests.engine.oracle import Stock, assert_same_greedy, assert_same_logits
from tests.tiny_models import VOCAB_SIZE, tiny_checkpoint

FAMILIES = ("mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "phimoe", "nemotron_h", "jamba")
NEW_TOKENS = 12


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist()


@cache
def reference(family: str) -> tuple[Stock, list[list[int]], list[list[int]]]:
    stock = Stock(tiny_checkpoint(family))
    prompts = [prompt_of(37, 1), prompt_of(5, 2)]
    return stock, prompts, [stock.greedy(prompt, NEW_TOKENS) for prompt in prompts]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{"budget": "5%"}, {"budget": "40%", "policy": "lru"}, {"preload": True}])
def test_greedy_ids_and_logits_are_stocks(family, settings, card):  # noqa: F811
    stock, prompts, answers = reference(family)
    with Engine.load(tiny_checkpoint(family), **settings) as engine:
        for prompt, answer in zip(prompts, answers, strict=True):
            assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)
        assert_same_logits(engine.logits(prompts[0]), stock.logits(prompts[0]))
        assert engine.snapshot().link == "cuda"
        assert engine.stats().bytes_total > 0
    assert not card.locked and card.allocated_bytes == 0


@pytest.mark.parametrize("family", ("mixtral", "deepseek_v3", "gpt_oss"))
def test_a_bfloat16_checkpoint_computes_as_stock_does_in_bfloat16(family, card):  # noqa: F811
    path = tiny_checkpoint(family, torch.bfloat16)
    stock = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    prompt = prompt_of(21, 3)
    with Engine.load(path, budget="30%") as engine:
        ours = dict(engine._model.named_parameters())
        for name, parameter in stock.named_parameters():
            if name in ours:  # all but the experts'
                assert ours[name].dtype == parameter.dtype, name
                assert torch.equal(ours[name], parameter), name
        assert engine.plan.near_bytes_dense == resident_bytes(engine._model)
        logits = engine.logits(prompt)
        with torch.inference_mode():
            exact = stock(torch.tensor([prompt])).logits[0, -1].float()
        assert (logits - exact).norm() / exact.norm() < 0.05  # bfloat16 has eight bits
        assert engine._sequences[0]._kv.layers[0].keys.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ("int8", "nf4"))
def test_packed_experts_give_what_they_give_on_the_processor(precision, card, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr("engine.checkpoint.quantised.copies.models_dir", lambda: tmp_path / "models")
    path, prompt = tiny_checkpoint("mixtral"), prompt_of(19, 4)
    with Engine.load(path, budget="50%", precision=precision) as engine:
        on_card = engine.logits(prompt)
        ids = engine.generate_ids(prompt, 6)
    monkeypatch.undo()
    monkeypatch.setattr("engine.checkpoint.quantised.copies.models_dir", lambda: tmp_path / "models")
    with Engine.load(path, budget="50%", precision=precision, device="cpu") as engine:
        assert_same_logits(on_card, engine.logits(prompt))
        assert engine.generate_ids(prompt, 6) == ids


@pytest.mark.parametrize("family", ("mixtral", "deepseek_v3", "gpt_oss"))
def test_experts_that_the_processor_computes_give_the_same(family, card, monkeypatch):  # noqa: F811
    monkeypatch.setattr(HostCompute, "share", lambda self, misses: (misses + 1) // 2)  # whatever takes how long
    stock, prompts, answers = reference(family)
    with Engine.load(tiny_checkpoint(family), budget="20%", host_compute=True) as engine:
        for prompt, answer in zip(prompts, answers, strict=True):
            assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)
        assert 0 < engine.stats().computed_far < engine.stats().misses
        engine.record_routing(True)
        engine.generate_ids(prompts[1], 4)
        engine.record_routing(False)
        engine._host_tier.check()
        assert not engine._host_tier._in_use
    with Engine.load(tiny_checkpoint(family), budget="20%") as engine:
        engine.generate_ids(prompts[0], 4)
        assert engine.stats().computed_far == 0  # the processor rounds otherwise: only where it is asked for


def test_the_plan_is_made_against_the_card_and_kept_on_it(card):  # noqa: F811
    path = tiny_checkpoint("mixtral")
    with Engine.load(path, budget="100%") as engine:
        plan = engine.plan
        assert card.allocated_bytes == plan.near_bytes_experts == plan.slots * plan.slot_bytes
        assert plan.reasons[0].endswith("the tests made up.") and "RAM" in plan.reasons[1]
        for budget in ("50%", "20%", "80%", "10%"):
            plan = engine.resize(budget)
            assert card.allocated_bytes == plan.near_bytes_experts
            engine.generate_ids(prompt_of(9, 5), 4)
        assert engine.snapshot().plan == plan


def test_a_batch_on_a_card_answers_as_stock_does_and_leaves_nothing(card):  # noqa: F811
    stock, prompts, answers = reference("mixtral")
    with Engine.load(tiny_checkpoint("mixtral"), budget="40%", batch_size=2) as engine:
        found = {answer.number: answer.ids for answer in engine.generate_batch(prompts, NEW_TOKENS)}
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            assert_same_greedy(found[number], answer, prompt, stock)
        chats = engine._sequences
    assert card.allocated_bytes == 0 and not any(chat.kv_bytes for chat in chats)


def test_one_read_back_a_layer_is_all_that_decoding_waits_for(card, monkeypatch):  # noqa: F811
    """With every expert there: a choice read back in each MoE layer and the token's logits."""
    path = tiny_checkpoint("mixtral")
    read_back = torch.Tensor.cpu
    with Engine.load(path, budget="100%") as engine:
        prompt = prompt_of(12, 6)
        engine.generate_ids(prompt, 8)  # every expert that is needed is there
        layers = len(engine._experts_per_layer)
        before, calls = card.calls.copy(), []
        monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: calls.append(tensor.shape) or read_back(tensor))
        logits = engine._sequences[0].step(7)
        assert len(calls) == layers + 1 and logits.shape == calls[-1]
        spent = card.calls - before
        misses = spent["copy"]
        assert spent["empty"] == 0 and spent["synchronize"] == misses
        assert spent["record"] >= layers


def test_recording_and_predicting_see_what_they_need(card):  # noqa: F811
    with Engine.load(tiny_checkpoint("mixtral"), budget="40%", policy="predictive") as engine:
        engine.record_routing(True)
        engine.generate_ids(prompt_of(20, 7), 6)
        [trace] = engine.take_routing()
        engine.record_routing(False)
    assert len(trace) == 25 and trace.experts.max() < 8


def test_a_closed_engine_holds_nothing_of_the_card(card):  # noqa: F811
    engine = Engine.load(tiny_checkpoint("mixtral"), budget="40%")
    engine.generate_ids(prompt_of(9, 1), 3)
    model, traced = engine._model, engine.traced_model
    assert engine._sequences[0].kv_bytes > 0
    engine.close()
    engine.close()
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert engine._sequences[0].kv_bytes == 0 and card.allocated_bytes == 0
    assert engine.traced_model == traced and engine.snapshot().plan == engine.plan


def test_devices_and_links_that_go_together():
    assert place("cpu", "auto").card is None
    assert place("auto", "disk").card is None
    assert place("auto", "emulated:1GBps").device.type == "cpu"
    with pytest.raises(InvalidSetting, match="needs a card"):
        place("cpu", "cuda")
    with pytest.raises(InvalidSetting, match="not a device"):
        place("tpu", "auto")


def test_a_card_that_is_asked_for_and_not_there_is_refused(monkeypatch):
    from engine.hardware.gpus import GpuSurvey
    from engine.hardware.torch_cuda import TorchCuda

    monkeypatch.setattr("engine.placement.survey_gpus", lambda: GpuSurvey((), None, "No NVIDIA driver is installed."))
    monkeypatch.setattr("engine.placement.ask_torch", lambda: TorchCuda("2.13.0+cpu", None))
    for device, link in (("cuda", "auto"), ("cuda:1", "auto"), ("auto", "cuda")):
        with pytest.raises(DeviceNotAvailable):
            place(device, link)
    assert place("auto", "auto").card is None


@pytest.mark.parametrize("family", ("mixtral", "gpt_oss"))
def test_a_checkpoint_larger_than_ram_is_answered_from_the_disk(family, card, monkeypatch):  # noqa: F811
    """RAM for four experts at a time; all others are read again whenever they are asked for."""
    monkeypatch.setattr("engine.placement.available_ram_bytes", lambda: 1 << 20)
    stock, prompts, answers = reference(family)
    with Engine.load(tiny_checkpoint(family), budget="25%") as engine:
        for prompt, answer in zip(prompts, answers, strict=True):
            assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)
        tier = engine._host_tier
        assert tier.places == 4 and tier.nbytes == 4 * engine.plan.slot_bytes
        assert tier.read_from_disk > 24
        assert any("come from the disk" in reason for reason in engine.plan.reasons)


@pytest.mark.parametrize("family", ("mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "nemotron_h"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_model_is_the_same_to_traces_wherever_it_is_computed(family, dtype, card, monkeypatch):  # noqa: F811
    path = tiny_checkpoint(family, dtype)
    with Engine.load(path, budget="25%") as engine:
        on_card = engine.traced_model
    monkeypatch.undo()
    with Engine.load(path, budget="25%", device="cpu") as engine:
        assert engine.traced_model == on_card
