"""A card that is not here: its memory, its link in this machine's time, results in its own time, labelled."""

from __future__ import annotations

import json
from dataclasses import replace

import psutil
import pytest
import torch

from engine import Engine, card_emulation
from engine.card_emulation import CardEmulation, bytes_read_per_token, plan_memory
from engine.checkpoint.dense_model import load_dense, open_checkpoint
from engine.errors import InvalidSetting, NotEnoughMemory
from engine.hardware.gpu_profiles import GIB, profile_named
from engine.hardware.measurements import keep_measurement, kept_measurement, measurement_file
from engine.hardware.memory_plan import Footprint
from engine.lab.simulation.simulated_pace import simulated_pace
from tests.engine.test_exactness import prompt_of
from tests.separate_home import separate_home
from tests.tiny_models import tiny_checkpoint, tiny_model

CARD = profile_named("4060")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    separate_home(tmp_path / "home", monkeypatch)


def expected_bytes(family: str) -> int:
    """Of the stock model's own parameters: all but the experts that a token does not use and the input embedding."""
    model = tiny_model(family)
    total = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            total += parameter.nbytes * 2 // 8
        elif "embed_tokens" not in name or model.config.tie_word_embeddings:
            total += parameter.nbytes
    return total


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "granitemoe"])  # the last with its embedding as the head
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_reads_its_experts_and_everything_else_once(family, dtype):
    expected = expected_bytes(family) * dtype.itemsize // 4
    dense = load_dense(tiny_checkpoint(family, dtype))
    itemsize = dense.model.get_input_embeddings().weight.element_size()
    assert bytes_read_per_token(dense.model, dense.index, itemsize) == expected
    # the same from the headers alone
    seconds = simulated_pace("4060", None, None).token_seconds(open_checkpoint(tiny_checkpoint(family, dtype)))
    assert seconds == pytest.approx(expected / 272e9)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2"])  # by the fast path, by transformers' own layers
def test_the_same_tokens_come_labelled_and_in_the_cards_time(family, monkeypatch):
    monkeypatch.setattr(card_emulation, "measure_resident_token", lambda *_: 1e-5)
    with Engine.load(tiny_checkpoint(family), budget="100%") as plain:
        expected = plain.generate_ids(prompt_of(9, 1), 6)
    with Engine.load(tiny_checkpoint(family), budget="50%", link="emulated:rtx4060") as engine:
        assert engine.generate_ids(prompt_of(9, 1), 6) == expected
        snapshot, stats = engine.snapshot(), engine.stats()
    emulation = snapshot.emulation
    assert snapshot.link == emulation.label == "emulated RTX 4060"
    assert "not here" in snapshot.notes[0] and "in its time" in snapshot.notes[0]
    assert stats.time_dilation == emulation.dilation == stats.to_dict()["time_dilation"]
    assert stats.tokens_per_second == pytest.approx(emulation.dilation * stats.decode_steps / stats.decode_seconds)
    assert (stats - stats).tokens_per_second == 0 and (stats - stats).time_dilation == emulation.dilation
    assert emulation.card_token_seconds == pytest.approx(expected_bytes(family) / 272e9)
    assert json.loads(json.dumps(emulation.to_dict()))["card"]["name"] == "RTX 4060"


def test_the_link_keeps_the_cards_ratio_of_moving_to_computing():
    emulation = CardEmulation(CARD, resident_token_seconds=0.05, card_token_seconds=0.002)
    assert emulation.dilation == pytest.approx(25)
    expert_bytes = 10**7
    there = (expert_bytes / CARD.link_bytes_per_second + CARD.link_latency_seconds) / 0.002
    here = (expert_bytes / emulation.speed.bytes_per_second + emulation.speed.latency_seconds) / 0.05
    assert here == pytest.approx(there)


def test_a_kept_measurement_holds_while_the_machine_is_as_it_was(monkeypatch):
    asked = []

    def takes(seconds):
        def measure(dense, link, fast, tokens, on_progress):
            asked.append(tokens)
            return seconds

        monkeypatch.setattr(card_emulation, "measure_resident_token", measure)

    def load(card):
        with Engine.load(tiny_checkpoint("mixtral"), link=f"emulated:{card}") as engine:
            assert engine._cache._transfers._speed == engine.snapshot().emulation.speed
            return engine.snapshot().emulation

    takes(0.02)
    first = load("4060")
    takes(0.022)
    second = load("4090")
    assert first.resident_token_seconds == second.resident_token_seconds == 0.02
    assert second.card_token_seconds < first.card_token_seconds
    takes(0.1)  # something else runs beside: the link has to be slower, too
    assert load("4060").resident_token_seconds == 0.1
    few, many = card_emulation.CHECKED_TOKENS, card_emulation.MEASURED_TOKENS
    assert asked == [many, few, few, many]


def test_measurements_survive_damage_and_unwritable_folders():
    identity = ("a", 1)
    assert kept_measurement(identity) is None
    keep_measurement(identity, 0.5)
    assert kept_measurement(identity) == 0.5
    folder = measurement_file(identity).parent
    assert [file.name for file in folder.iterdir()] == [measurement_file(identity).name]
    for damaged in ("{", "-1", "NaN", '"fast"'):
        measurement_file(identity).write_text(damaged)
        assert kept_measurement(identity) is None
    measurement_file(identity).unlink()
    folder.rmdir()
    folder.write_text("a file where the folder should be")
    keep_measurement(identity, 1.1)
    assert kept_measurement(identity) is None


def test_auto_means_the_cards_memory_and_says_so(monkeypatch):
    monkeypatch.setattr(card_emulation, "available_ram_bytes", lambda: pytest.fail("RAM is not the near tier here"))
    large = Footprint(
        10**9, 10**8, 10**8, slot_bytes=10**7, experts_total=5000, minimum_slots=8, model_bytes_total=51 * 10**9
    )
    plan = plan_memory(large, "auto", "emulated:4060")
    assert plan.near_bytes_total + plan.margin_bytes <= 8 * GIB < plan.near_bytes_total + plan.margin_bytes + 10**7
    assert "Emulation" in plan.reasons[0] and "RTX 4060: 8 GiB" in plan.reasons[0]
    assert plan_memory(large, "auto", "emulated:4090").slots > plan.slots
    assert "only 8.6 GB are free" in plan_memory(large, "50%", "emulated:4060").warnings[0]
    with pytest.raises(NotEnoughMemory):
        plan_memory(replace(large, dense_bytes=9 * 10**9), "auto", "emulated:4060")


def test_a_plan_over_any_other_link_is_made_against_ram():
    small = Footprint(10**6, 10**6, 10**6, 10**4, 100, 2, 2 * 10**6)
    plan = plan_memory(small, "auto", "emulated:2.5GBps")
    assert "Emulation" not in plan.reasons[0]
    assert plan.margin_bytes < psutil.virtual_memory().total


def test_resizing_stays_within_the_cards_memory(monkeypatch):
    monkeypatch.setattr(card_emulation, "measure_resident_token", lambda *_: 0.02)
    with Engine.load(tiny_checkpoint("mixtral"), link="emulated:4060") as engine:
        assert "Emulation" in engine.plan_for("auto").reasons[0]
        assert engine.resize("25%").slots == 6


def test_a_card_nobody_knows_is_refused_before_anything_is_read():
    with pytest.raises(InvalidSetting, match="No card called 'pony'.*RTX 3060"):
        Engine.load(tiny_checkpoint("mixtral"), link="emulated:pony")


def test_experts_that_do_not_fit_ram_are_refused_in_numbers(monkeypatch):
    monkeypatch.setattr("engine.cache.links.emulated.available_ram_bytes", lambda: 1000)
    with pytest.raises(NotEnoughMemory, match="keeps all experts in RAM.*simulate --gpu"):
        Engine.load(tiny_checkpoint("mixtral"), link="emulated:4060")


def test_measuring_reads_every_layers_experts_and_tells_how_far_it_is(monkeypatch):
    asked, told = [], []
    acquire = card_emulation.FarExperts.acquire

    def watched(self, layer, experts):
        asked.append(layer)
        return acquire(self, layer, experts)

    monkeypatch.setattr(card_emulation.FarExperts, "acquire", watched)
    monkeypatch.setattr(card_emulation, "MEASURED_TOKENS", 2)
    load = {"link": "emulated:4060", "on_progress": lambda *progress: told.append(progress)}
    with Engine.load(tiny_checkpoint("mixtral", torch.bfloat16), **load) as engine:
        assert engine.snapshot().emulation.resident_token_seconds > 0
    assert asked == [0, 1, 2] * 5
    assert [progress for progress in told if progress[0] == card_emulation.STAGE][-1][1:] == (5, 5)
