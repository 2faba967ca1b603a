"""The precision benchmark on a tiny model: what is measured is reported, kept with the copies, and told in the plan."""

from __future__ import annotations

import json
import shutil

import pytest

from app.bench_tables import show_precision
from engine.checkpoint.builtin import builtin_path
from engine.checkpoint.dense_model import open_checkpoint
from engine.checkpoint.quantised import PRECISIONS, ensure_quantised, plan_quantised, quality
from engine.engine import Engine
from engine.errors import InvalidSetting
from engine.lab import bench_precision
from engine.lab.bench_precision import PrecisionSettings, run_bench_precision
from engine.lab.held_out import Passage
from engine.lab.prompts import DEFAULT_PROMPTS
from engine.paths import HOME_VARIABLE
from tests.engine.oracle import Stock
from tests.tiny_chat_model import tiny_chat_checkpoint
from tests.tiny_models import tiny_checkpoint

PASSAGE = Passage([40 + (7 * n * n) % 90 for n in range(60)], [False] + [True] * 59)


def silent(*_: object) -> None:
    """Progress is not of interest here."""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_precision, "load_documentation", lambda tokenizer: [PASSAGE])
        settings = PrecisionSettings(str(tiny_chat_checkpoint()), "25%", "disk:buffered", 5, 2, 1, DEFAULT_PROMPTS[:1])
        return run_bench_precision(settings, silent)


def test_perplexity_is_stocks_on_the_same_text(report):
    stock = Stock(tiny_chat_checkpoint())
    expected = bench_precision.perplexity(stock._model, [PASSAGE], "", silent)
    by_precision = {run["precision"]: run["perplexity"] for run in report["runs"]}
    assert list(by_precision) == ["native", "int8", "nf4"]
    assert by_precision["native"]["documentation"] == pytest.approx(expected, rel=1e-4)
    assert "chats" not in by_precision["native"]  # this model does not know their template
    changes = {name: abs(value["documentation"] / expected - 1) for name, value in by_precision.items()}
    assert changes["native"] < changes["int8"] < changes["nf4"]


def test_bytes_and_speeds_are_reported_with_their_ratios(report):
    native, int8, nf4 = report["runs"]
    assert native["expert_bytes"] > int8["expert_bytes"] >= nf4["expert_bytes"]
    assert len({run["budget_bytes"] for run in report["runs"]}) == 1
    assert all(run["tokens_per_second"] > 0 and run["repeats"] == 2 for run in report["runs"])
    assert report["ratios"]["expert_bytes_nf4_over_native"] == nf4["expert_bytes"] / native["expert_bytes"]
    assert report["ratios"].keys() >= {"decode_int8_over_native", "perplexity_nf4_over_native_documentation"}
    assert json.loads(json.dumps(report))["counted_tokens"] == {"documentation": 59}


def test_the_report_for_people_has_a_line_for_each_precision(report, capsys):
    show_precision(report)
    words = capsys.readouterr().out
    assert all(name in words for name in ("native", "int8", "nf4", "decode_nf4_over_native"))
    show_precision({**report, "runs": [{k: v for k, v in report["runs"][0].items() if k not in ("slots", "hit_rate")}]})


def test_the_plan_tells_what_was_measured(report):
    measured = report["ratios"]["perplexity_nf4_over_native_documentation"] - 1
    with Engine.load(tiny_chat_checkpoint(), precision="nf4") as engine:
        assert engine.plan.precision == "nf4" == engine.resize("25%").precision
        (told,) = [reason for reason in engine.plan.reasons if "lossy" in reason]
    assert f"{measured:+.1%} on documentation" in told
    with Engine.load(tiny_chat_checkpoint()) as engine:
        assert engine.plan.precision == "native"
        assert not any("lossy" in reason for reason in engine.plan.reasons)


def test_what_was_not_measured_is_told_as_such():
    with Engine.load(tiny_checkpoint("olmoe"), precision="int8") as engine:
        assert any("not measured for this model" in reason for reason in engine.plan.reasons)


def test_figures_are_shipped_for_the_built_in_model_alone(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr(quality, "SHIPPED_DIR", tmp_path / "shipped")
    shutil.copytree(tiny_checkpoint("mixtral"), builtin_path())
    index = plan_quantised(open_checkpoint(builtin_path()), "nf4")
    assert quality.measured_quality(index) is None
    ensure_quantised(index)
    figures = quality.MeasuredQuality({"chats": 1.02}, {"chats": 100})
    quality.record_quality(index, figures)
    quality.SHIPPED_DIR.mkdir()
    shipped = quality.shipped_path(index.source, "nf4")
    (index.folder / quality.QUALITY_NAME).rename(shipped)
    assert quality.measured_quality(index) == figures
    assert "+2.0% on chats" in quality.lossy_sentence(index)
    assert quality.measured_quality(plan_quantised(open_checkpoint(tiny_checkpoint("mixtral")), "nf4")) is None


@pytest.mark.parametrize("precision", PRECISIONS)
def test_figures_for_this_built_in_model_are_there(precision):
    figures = json.loads(quality.shipped_path(builtin_path(), precision).read_text())
    assert figures.keys() == {"perplexity_over_native", "counted_tokens"}
    assert all(figures["counted_tokens"][text] > 1000 for text in ("chats", "documentation"))
    assert all(0.9 < ratio < 1.5 for ratio in figures["perplexity_over_native"].values())


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(InvalidSetting, match="no tokenizer"):
        run_bench_precision(PrecisionSettings(str(tiny_checkpoint("mixtral"))), silent)
