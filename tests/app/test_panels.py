"""What the panels are given: shares, bytes and words, from a snapshot and samples."""

import base64
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from app.engine_host import LoadState
from app.machine_memory import NearMemory, emulated_memory, near_memory
from app.panel_history import PanelHistory, Sample
from app.ui.live_panels import LivePanels
from app.ui.panels import foresight, memory_bars, panel_data, series, tiles
from engine.card_emulation import CardEmulation
from engine.hardware.gpu_profiles import profile_named
from engine.snapshot import ForesightSnapshot
from tests.app.fake_engine import EXPERTS, LAYERS, FakeEngine

MEMORY = NearMemory("RAM", 16_000_000_000, 9_000_000_000)


def sample(seconds=1.0, hits=3, late=1, misses=4, stall=0.25):
    return Sample(seconds, hits, late, misses, 100, 10, 30, 5, stall, 2)


@pytest.fixture
def engine():
    return FakeEngine()


def tile(snapshot, samples, label):
    return next(t for t in tiles(snapshot, samples) if t["label"] == label)


def test_before_the_first_answer_figures_are_dashes_without_units(engine):
    empty = tile(engine.snapshot(), [], "Speed")
    assert (empty["value"], empty["unit"]) == ("–", "")
    assert tile(engine.snapshot(), [], "Hit rate")["value"] == "–"


def test_hit_rate_and_waiting_are_of_the_newest_seconds(engine):
    samples = [sample(hits=0, late=0, misses=8, stall=1.0)] * 20 + [sample()] * 10
    assert tile(engine.snapshot(), samples, "Hit rate")["value"] == "38"
    assert tile(engine.snapshot(), samples, "Waiting")["value"] == "25"


@pytest.mark.parametrize(
    ("running", "words"), [(0, "of the last answers"), (1, "of the last answers"), (3, "all 3 chats")]
)
def test_figures_of_several_chats_say_that_they_are(engine, running, words):
    snapshot = replace(engine.snapshot(), running=running)
    assert words in tile(snapshot, [], "Speed")["hint"]
    assert ("came last" in tile(snapshot, [], "Context")["hint"]) == (running > 1)


def test_memory_saved_says_gigabytes_and_percent(engine):
    engine.resize("25%")
    saved = tile(engine.snapshot(), [], "Memory saved")
    plan = engine.plan
    assert saved["value"] == f"{(plan.model_bytes_total - plan.near_bytes_total) / 1e6:.0f}"
    assert saved["unit"] == "MB"
    assert saved["hint"].startswith(f"{100 * plan.memory_saving:.0f} %")


def test_the_bars_add_up_to_the_model_and_to_the_machine(engine):
    engine.resize("25%")
    bars = memory_bars(engine.plan, MEMORY)
    owners = sum(part["bytes"] for part in bars["owners"])
    assert owners == engine.plan.near_bytes_total
    assert owners + bars["left_out_bytes"] == engine.plan.model_bytes_total
    assert sum(part["bytes"] for part in bars["machine"]) == MEMORY.total_bytes


def test_what_auto_leaves_to_other_programs_is_part_of_what_is_free(engine):
    parts = {part["key"]: part["bytes"] for part in memory_bars(engine.plan, MEMORY)["machine"]}
    assert parts["margin"] == engine.plan.margin_bytes > 0
    by_hand = memory_bars(replace(engine.plan, margin_bytes=0), MEMORY)["machine"]
    assert {part["key"]: part["bytes"] for part in by_hand}["free"] == parts["margin"] + parts["free"]


def test_link_traffic_counts_corrections_as_demanded():
    assert series([sample()])[0] == {
        "hit": 3, "late": 1, "miss": 4, "demand": 110, "used": 30, "wasted": 5, "stall": 0.25, "seconds": 1.0,
    }  # fmt: skip


def test_everything_is_json_and_the_heat_map_holds_each_expert(engine):
    list(engine.chat([{"role": "user", "content": "hi"}]))
    data = json.loads(json.dumps(panel_data(engine.snapshot(), [sample()], MEMORY)))
    heat = data["heat"]
    assert (heat["layers"], heat["experts"]) == (LAYERS, EXPERTS)
    assert len(base64.b64decode(heat["residency"])) == LAYERS * EXPERTS == len(heat["uses"])
    assert heat["used"]
    assert heat["resident"] == int((engine.snapshot().residency == 2).sum())


def test_samples_are_differences_and_idle_seconds_leave_none(engine):
    class Host:
        pass

    host = Host()
    host.engine = engine
    history = PanelHistory(host)
    history.sample()
    list(engine.chat([{"role": "user", "content": "hi"}]))
    history.sample()
    history.sample()
    assert [s.tokens for s in history.samples()] == [3]
    stats = engine.stats()
    assert history.samples()[0].hits == stats.hits


def test_ram_is_the_near_memory_of_the_processor():
    memory = near_memory("cpu")
    assert memory.name == "RAM"
    assert 0 < memory.free_bytes <= memory.total_bytes
    assert memory.others_bytes(memory.total_bytes) == 0


def foresight_of(**changes):
    recall = np.array([0.5, 0.9])
    found = ForesightSnapshot(
        pays=True, gain=0.31, recall_before_step=recall, recall_before_layer=recall + 0.05, source="Guesses."
    )
    return replace(FakeEngine().snapshot(), foresight=replace(found, **changes))


def test_a_policy_that_predicts_nothing_has_no_panel_for_it(engine):
    assert foresight(engine.snapshot()) is None


def test_foreseen_experts_are_shown_by_layer(engine):
    shown = foresight(foresight_of())
    assert shown["layers"] == [{"foreseen": 50, "corrected": 5}, {"foreseen": 90, "corrected": 5}]
    assert (shown["foreseen"], shown["corrected"], shown["source"]) == ("70 %", "75 %", "Guesses.")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "On: measured 31 % faster"),
        ({"pays": None, "gain": None}, "On; whether it pays is measured"),
        ({"pays": False}, "Off: hardly anything is waited for"),
        ({"pays": False, "gain": -0.07}, "Off: measured 7 % slower"),
    ],
)
def test_whether_prediction_pays_is_said(changes, words):
    assert foresight(foresight_of(**changes))["words"].startswith(words)


def test_before_the_first_token_nothing_is_known_of_foresight():
    shown = foresight(foresight_of(recall_before_step=None, recall_before_layer=None))
    assert (shown["layers"], shown["foreseen"]) == ([], "")


def test_an_emulated_card_is_named_beside_its_speed_and_is_the_memory_shown(engine):
    card = profile_named("4060")
    snapshot = replace(engine.snapshot(), emulation=CardEmulation(card, 0.024, 0.001), recent_tokens_per_second=400.0)
    assert tile(snapshot, [], "Speed")["hint"] == "emulated RTX 4060, in its time: 24 x this machine's"
    assert "on this machine" in tile(snapshot, [], "First token")["hint"]
    ours = snapshot.plan.near_bytes_total
    bars = memory_bars(snapshot.plan, emulated_memory(card, ours))
    assert bars["machine_name"] == "emulated RTX 4060"
    by_key = {part["key"]: part["bytes"] for part in bars["machine"]}
    assert by_key["others"] == 0 and by_key["ours"] + by_key["margin"] + by_key["free"] == card.vram_bytes


def test_while_loading_the_memory_is_that_of_the_card_to_be_emulated():
    def reading(link):
        host = SimpleNamespace(state=LoadState("Loading"), engine=None, plan=FakeEngine().plan, options={"link": link})
        program = SimpleNamespace(host=host)
        return LivePanels(program, None, None, None)._planned()["memory"]

    assert reading("emulated:4060")["machine_name"] == "emulated RTX 4060"
    assert reading("disk")["machine_name"] == "RAM"
