"""From files of traces to a trained predictor and its measurements, as the commands do it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from app.cli import app
from engine.checkpoint.token_embedding import read_token_embedding
from engine.errors import Cancelled, InvalidSetting, UnsupportedModel
from engine.routing.blend import blend_of
from engine.routing.predictors.recurrent_network import RecurrentNetwork, RecurrentSizes
from engine.routing.predictors.registry import load_predictor
from engine.routing.predictors.weights_file import StoredPredictor, read_predictor
from engine.routing.traces.trace_set import TraceSet
from engine.routing.training.predictor_training import PredictorTraining, make_network, train_predictor
from engine.routing.training.split import split_by_conversation
from engine.routing.training.train import TrainingSettings
from tests.routing.synthetic import SHAPE, WIDTH, conversations, write_traces

ROOT = Path(__file__).parents[2]
SIZES = RecurrentSizes(horizon=2, token_width=8, state_width=16, head_width=16)
SETTINGS = TrainingSettings(steps=30, batch=8, window=16, rate=1e-2, measure_every=10)
TRAINING = PredictorTraining(sizes=SIZES, settings=SETTINGS)


def recorded(count: int = 60, distances: int = 2) -> TraceSet:
    return TraceSet("model one", SHAPE, tuple(conversations(count, 24, distances=distances)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "p.safetensors"
    return out, train_predictor(recorded(), out, TRAINING, torch.randn(SHAPE.vocabulary, 6))


def test_the_file_says_what_it_knows_and_how_well(trained):
    out, report = trained
    stored = read_predictor(out, "model one")
    assert stored.history == report["history"] and stored.sizes["hidden_width"] == WIDTH
    assert sum(stored.history["tokens"].values()) == 60 * 24
    assert [path.name for path in out.parent.iterdir()] == ["p.safetensors"]
    blend = blend_of(stored.arrays)
    assert blend is not None and blend.coefficients.shape == (2, SHAPE.layers, 3)
    by_distance = [row["blend"]["recall"]["2"] for row in report["test"]["ahead"]]
    assert [row["layer"] for row in report["test"]["next_from_layer"]] == [4]
    assert len(by_distance) == 2 and min(by_distance) > report["test"]["rows"][0]["recall"]["2"] > 0.5
    assert json.dumps(report)


def test_an_interrupted_training_goes_on_to_the_same_file(trained, tmp_path):
    out = tmp_path / "p.safetensors"
    embedding = torch.randn(SHAPE.vocabulary, 6, generator=torch.Generator().manual_seed(1))
    train_predictor(recorded(), tmp_path / "whole.safetensors", TRAINING, embedding)
    with pytest.raises(Cancelled):
        train_predictor(recorded(), out, TRAINING, embedding, must_stop=lambda: True)
    assert not out.exists() and (tmp_path / "p.safetensors.checkpoint").exists()
    report = train_predictor(recorded(), out, TRAINING, embedding)
    whole, left = (read_predictor(tmp_path / name) for name in ("whole.safetensors", "p.safetensors"))
    assert all((whole.arrays[name] == array).all() for name, array in left.arrays.items())
    assert report["history"]["steps"] == 30 and not (tmp_path / "p.safetensors.checkpoint").exists()


def test_the_residual_stream_is_used_only_where_all_have_it():
    mixed = [*conversations(59, 24), replace(conversations(1, 24, seed=3)[0], hidden=None)]
    some = TraceSet("m", SHAPE, tuple(mixed))
    for traces, training, width in (
        (recorded(), TRAINING, WIDTH),
        (recorded(), replace(TRAINING, use_hidden=False), 0),
        (some, TRAINING, 0),
    ):
        network = make_network(traces, split_by_conversation(traces.traces), training)
        assert isinstance(network, RecurrentNetwork) and network.sizes.hidden_width == width


def test_a_predictor_learns_on_and_gets_no_worse(trained, tmp_path):
    _, report = trained
    on = replace(TRAINING, start=read_predictor(report["file"]), settings=replace(SETTINGS, steps=150, seed=5))
    without_ahead = replace(recorded(), traces=tuple(replace(trace, ahead=None) for trace in recorded().traces))
    further = train_predictor(without_ahead, tmp_path / "further.safetensors", on)
    assert blend_of(read_predictor(further["file"]).arrays) is not None
    assert further["history"]["validation_recall"] > report["history"]["validation_recall"]
    ruinous = replace(on, settings=replace(SETTINGS, rate=10.0))
    kept = train_predictor(recorded(), tmp_path / "kept.safetensors", ruinous)
    assert kept["history"]["best_step"] == 0
    assert kept["history"]["validation_recall"] == pytest.approx(report["history"]["validation_recall"], abs=0.01)


def test_what_cannot_be_trained_says_why(tmp_path):
    out = tmp_path / "p"
    with pytest.raises(InvalidSetting, match="kind 'magic'"):
        train_predictor(recorded(), out, replace(TRAINING, kind="magic"))
    with pytest.raises(InvalidSetting, match="learn on"):
        other = StoredPredictor("recurrent", "model two", SHAPE, {}, {})
        train_predictor(recorded(), out, replace(TRAINING, start=other))
    with pytest.raises(InvalidSetting, match="3 token ids"):
        train_predictor(recorded(), out, TRAINING, torch.zeros(3, 4))
    with pytest.raises(InvalidSetting, match="Record more"):
        train_predictor(recorded(1), out, TRAINING)
    assert not list(tmp_path.iterdir())


def test_a_models_own_embedding_is_found_by_name(tmp_path):
    table = torch.randn(5, 3).bfloat16()
    save_file({"model.embed_tokens.weight": table, "lm_head.weight": table + 1}, tmp_path / "model.safetensors")
    assert torch.equal(read_token_embedding(tmp_path), table.float())
    save_file({"something": table}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="without --model"):
        read_token_embedding(tmp_path)


def command(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def test_commands_train_and_compare(tmp_path):
    file, out = write_traces(tmp_path / "t.sqlite", recorded().traces), tmp_path / "p.safetensors"
    quick = ("--steps", 12, "--window", 16, "--measure-every", 6, "--horizon", 2)
    report = json.loads(command("train-predictor", "--traces", file, "--out", out, *quick, "--json"))
    assert report["history"]["steps"] == 12 and load_predictor(out).horizon == 2
    bench = ("bench", "predictor", "--traces", file, "--predictors", f"none,previous,table,oracle,{out}")
    found = json.loads(command(*bench, "--json"))
    recall = {run["predictor"]: run["rows"][0]["recall"]["2"] for run in found["runs"]}
    assert list(recall) == ["none", "previous", "table", "oracle", str(out)]
    assert recall["none"] == 0 < recall["previous"] < recall["table"] < recall["oracle"] == 1
    assert {"machine", "command", "runs", "ratios"} <= set(found)
    assert len(found["runs"][-1]["ahead"]) == 2 and found["ratios"]["recall_oracle_over_table"] > 1
    table = command(*bench)
    assert "recall@2" in table and "blended" in table and "p.safetensors" in table


def test_commands_refuse_in_words(tmp_path):
    error = json.loads(command("train-predictor", "--traces", tmp_path / "no.sqlite", "--out", "x", "--json", code=2))
    assert "no.sqlite" in error["error"]["cause"]


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C of a child process is another thing there")
def test_ctrl_c_leaves_a_checkpoint(tmp_path):
    file, out = write_traces(tmp_path / "t.sqlite", recorded().traces), tmp_path / "p.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "train-predictor", "--traces", file, "--out", out, "--steps", "100000"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    try:
        while "Training" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "goes on from here" in said
    assert [path.name for path in tmp_path.glob("p.*")] == ["p.safetensors.checkpoint"]
