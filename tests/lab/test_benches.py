"""The benchmarks end to end on a tiny checkpoint: every figure is there, contenders agree, nothing is left behind."""

from __future__ import annotations

import json
import os

import pytest

from engine.cache.policy_choice import PLAIN_POLICIES, PREDICTIVE
from engine.errors import InvalidSetting
from engine.hardware.gpu_profiles import profile_named
from engine.hardware.memory_cgroup import find_memory_group
from engine.lab.bench_decode import DecodeSettings, run_bench_decode
from engine.lab.bench_peers import PeersSettings, run_bench_peers
from engine.lab.bench_prediction import PredictionSettings, run_bench_prediction
from engine.lab.contender_process import ContenderFailed
from engine.lab.prompts import DEFAULT_PROMPTS
from tests.tiny_chat_model import tiny_chat_checkpoint
from tests.tiny_models import tiny_checkpoint

RUN_FIELDS = {
    "policy",
    "budget",
    "tokens_per_second",
    "hit_rate",
    "late_rate",
    "miss_rate",
    "stall_seconds",
    "bytes_demand",
    "bytes_correction",
    "bytes_prefetch_used",
    "bytes_prefetch_wasted",
    "bytes_prefetch_pending",
    "bytes_total",
    "peak_near_bytes",
    "peak_rss_bytes",
    "bound_seconds",
    "efficiency",
}


def silent(*_: object) -> None:
    """Progress is not of interest here."""


@pytest.fixture(scope="module")
def decode_report():
    settings = DecodeSettings(
        model=str(tiny_chat_checkpoint()),
        budgets=("25%", "100%"),
        policies=("lfu",),
        links=("disk", "emulated:1GBps"),
        tokens=6,
        repeats=2,
        prompts=DEFAULT_PROMPTS[:1],
        with_stock=False,
    )
    return run_bench_decode(settings, silent)


def test_decode_reports_every_case_with_every_field(decode_report):
    cases = {(run["link"], run["policy"], run["budget"]) for run in decode_report["runs"]}
    assert len(cases) == len(decode_report["runs"]) == 4
    for run in decode_report["runs"]:
        assert run.keys() >= RUN_FIELDS
        assert run["repeats"] == 2
    assert json.loads(json.dumps(decode_report))["machine"]["cpu"]
    assert decode_report["identical_ids"]


def test_decode_rates_bytes_and_bounds_agree(decode_report):
    smaller = {run["link"]: run for run in decode_report["runs"] if run["budget"] != "100%"}
    for run in decode_report["runs"]:
        assert run["hit_rate"] + run["late_rate"] + run["miss_rate"] == pytest.approx(1.0)
        assert run["belady_bytes"] <= run["bytes_total"]
        assert run["bound_seconds"] >= run["belady_bytes"] / run["link_bytes_per_second"]
        assert run["bound_seconds"] >= run["compute_seconds"]
        if run["budget"] == "100%":  # what the chats before did not use is still fetched once
            assert run["belady_bytes"] == 0
            assert run["bytes_total"] < smaller[run["link"]]["bytes_total"]
        else:
            assert run["miss_rate"] > 0
        if run["link"].startswith("emulated"):
            assert run["link_bytes_per_second"] == 1e9


def test_decode_over_an_emulated_card_is_in_its_time_and_says_so(monkeypatch):
    monkeypatch.setattr("engine.card_emulation.steady_measurement", lambda identity, measure: 2e-5)
    settings = DecodeSettings(
        model=str(tiny_chat_checkpoint()),
        budgets=("50%",),
        policies=("lru",),
        links=("emulated:4060",),
        tokens=4,
        repeats=1,
        prompts=DEFAULT_PROMPTS[:1],
        with_stock=False,
    )
    report = run_bench_decode(settings, silent)
    (found,) = report["runs"]
    dilation = found["time_dilation"]
    assert found["emulated"] == "emulated RTX 4060"
    assert found["link_bytes_per_second"] == profile_named("4060").link_bytes_per_second
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["actual_seconds"])
    assert found["compute_seconds"] * dilation == pytest.approx(found["tokens"] / report["resident_tokens_per_second"])
    assert 0 <= found["stall_seconds"] <= found["actual_seconds"]
    assert report["emulations"]["emulated:4060"]["dilation"] == dilation
    assert any("not here" in note for note in report["notes"])


def test_decode_refuses_what_cannot_chat():
    with pytest.raises(InvalidSetting, match="tokenizer"):
        run_bench_decode(DecodeSettings(model=str(tiny_checkpoint("mixtral")), budgets=("50%",)), silent)


def test_peers_agree_and_leave_nothing_behind():
    folder = tiny_chat_checkpoint()
    settings = PeersSettings(
        model=str(folder),
        tokens=5,
        repeats=1,
        prefill_tokens=40,
        disk_tokens=4,
        disk_repeats=1,
        with_token_time=False,
    )
    report = run_bench_peers(settings, silent)
    assert set(report["ratios"]) == {
        "resident_decode_over_transformers",
        "resident_prefill_over_transformers",
        "quarter_decode_over_accelerate_disk",
    }
    assert all(ratio > 0 for ratio in report["ratios"].values()), report["notes"]
    assert report["identical_ids"]
    assert len(report["runs"]) == 6
    assert all(run["peak_rss_bytes"] > 0 for run in report["runs"])
    facts = report["contenders"]
    caged = facts["memory_limit_bytes"] is not None
    for run in report["runs"]:
        if run["what"] == "disk_decode" and caged:
            assert run["peak_with_page_cache_bytes"] <= facts["memory_limit_bytes"]
    assert facts["transformers"]["for_decoding"] in facts["transformers"]["trials"]
    assert not list(folder.parent.glob(".offload-*"))
    group = find_memory_group()
    assert group is None or not list(group.mount.rglob(f"expertflow-{os.getpid()}-*"))


def test_peers_without_control_groups_say_so_and_drop_pages(monkeypatch):
    monkeypatch.setattr("engine.lab.memory_cage.find_memory_group", lambda: None)
    settings = PeersSettings(
        model=str(tiny_chat_checkpoint()), repeats=0, tokens=4, disk_tokens=3, disk_repeats=1, with_token_time=False
    )
    monkeypatch.setattr("engine.lab.bench_peers._Bench.resident_pair", lambda self: None)
    report = run_bench_peers(settings, silent)
    assert report["contenders"]["memory_limit_bytes"] is None
    assert any("dropped after every token" in note for note in report["notes"])
    assert report["ratios"]["quarter_decode_over_accelerate_disk"] > 0
    assert report["ratios"]["resident_decode_over_transformers"] is None


def test_peers_with_nothing_that_runs_is_an_error():
    alone = {"with_disk": False, "with_token_time": False}
    with pytest.raises(ContenderFailed, match="is not possible"):
        run_bench_peers(PeersSettings(model=str(tiny_chat_checkpoint()), prefill_tokens=10**6, **alone), silent)


def test_prediction_is_simulated_and_measured_on_the_same_answers():
    settings = PredictionSettings(
        model=str(tiny_chat_checkpoint()),
        shares=(0.5,),
        stalls=(0.5, 0.25),
        cells=((0.5, 0.5),),
        tokens=6,
        prompts=DEFAULT_PROMPTS[:3],
    )
    report = run_bench_prediction(settings, silent)
    json.dumps(report)
    assert report["identical_ids"]
    assert len(report["runs"]) == 2 * len((*PLAIN_POLICIES, PREDICTIVE))
    for link, stall in (("stall:50%", 0.5), ("stall:25%", 0.25)):
        plain = [run for run in report["runs"] if run["link"] == link and run["policy"] != "predictive"]
        assert min(run["stall_share"] for run in plain) == pytest.approx(stall, abs=0.01)
    (cell,) = report["cells"]
    assert cell["pairs"] == 2
    assert cell["speed_ratio_least"] <= cell["speed_ratio"] <= cell["speed_ratio_most"]
    for policy, real in cell["real"].items():
        assert 0 <= real["stall_share"] < 1
        # the same routing through the same cache; only what a chat keeps of the one before is not simulated
        if policy != "predictive":
            assert cell["simulated"][policy]["hit_rate"] == pytest.approx(real["hit_rate"], abs=0.15)


def test_prediction_needs_two_prompts():
    with pytest.raises(InvalidSetting, match="One prompt is too few"):
        run_bench_prediction(PredictionSettings(prompts=DEFAULT_PROMPTS[:1]), silent)


def test_batches_are_measured_chat_after_chat_together_and_in_groups():
    from engine.lab.bench_batch import BatchBenchSettings, run_bench_batch

    settings = BatchBenchSettings(
        model=str(tiny_chat_checkpoint()),
        sizes=(1, 4),
        budgets=("50%",),
        links=("disk",),
        tokens=4,
        repeats=1,
        prompts=DEFAULT_PROMPTS,
    )
    report = run_bench_batch(settings, silent)
    runs = {(run["batch_size"], run["way"], run["scheduler"]): run for run in report["runs"]}
    grouped = {(4, "together", name) for name in ("off", "paper", "cache-aware")}
    assert runs.keys() == {(size, way, "waves") for size in (1, 4) for way in ("together", "apart")} | grouped
    assert runs[4, "together", "waves"]["experts_per_token"] < runs[4, "apart", "waves"]["experts_per_token"]
    assert runs[1, "together", "waves"]["experts_per_token"] == runs[1, "apart", "waves"]["experts_per_token"]
    assert runs[4, "together", "off"]["worst_wait_passes"] >= 1 > runs[4, "together", "waves"]["worst_wait_passes"]
    assert report["identical_ids"] and {run["group_size"] for run in report["runs"]} == {None, 2}
    ways = [f"{figure}_{name}" for figure in ("speed", "bytes") for name in ("paper", "cache-aware", "waves")]
    assert report["ratios"].keys() == {"together_50%_disk_1", *(f"{way}_50%_disk_4" for way in ["together", *ways])}


def test_recorded_conversations_are_grouped(tmp_path):
    from engine import Engine
    from engine.lab.grouping.simulate_groups import GroupSettings, simulate_recorded
    from engine.lab.trace_prompts import TraceSettings, trace_prompts
    from engine.routing.traces.trace_store import TraceStore

    model, file = str(tiny_chat_checkpoint()), tmp_path / "routing.sqlite"
    with Engine.load(model, budget="100%") as engine, TraceStore(file, engine.traced_model) as store:
        trace_prompts(engine, store, list(DEFAULT_PROMPTS[:4]), TraceSettings(tokens=8, temperature=0.0), silent)
    settings = GroupSettings((4,), (2,), (0.5,), ("lru-per-layer",), tokens=2, start=1)
    report = simulate_recorded([file], model, settings, True, silent)
    assert report["ratios"].keys() >= {
        f"4_2_50%_lru-per-layer_{way}" for way in ("paper_predicted", "cache-aware_predicted", "by-search_true")
    }
    with pytest.raises(InvalidSetting, match="traces"):
        simulate_recorded([], model, settings, True, silent)
