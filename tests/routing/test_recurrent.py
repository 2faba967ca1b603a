"""The recurrent predictor at work computes what the network learnt; its files say what they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from engine.errors import PredictorUnusable
from engine.model import kernels
from engine.routing.predictors import weights_file
from engine.routing.predictors.recurrent import READ_TOKENS, RecurrentPredictor, export, network_of
from engine.routing.predictors.recurrent_network import RecurrentNetwork, RecurrentSizes
from engine.routing.predictors.token_start import start_from_tokens
from engine.routing.predictors.weights_file import read_predictor, write_predictor
from engine.routing.scoring.replay import replay
from engine.routing.scoring.scores import Scores
from engine.routing.shape import RoutingShape
from engine.routing.training.windows import Windows
from tests.routing.synthetic import SHAPE, WIDTH, conversations

CALIBRATION = np.array([[1.3, -0.2], [0.8, 0.1], [1.0, 0.0]])


def random_network(hidden_width: int = WIDTH, **sizes) -> RecurrentNetwork:
    torch.manual_seed(0)
    embedding = torch.randn(SHAPE.vocabulary, 7)
    widths = {"horizon": 3, "token_width": 12, "state_width": 20, "head_width": 16} | sizes
    network = RecurrentNetwork(SHAPE, RecurrentSizes(hidden_width=hidden_width, **widths), embedding).eval()
    network.standardise(torch.randn(hidden_width), torch.rand(hidden_width) + 0.5)
    with torch.no_grad():
        network.token.weight.normal_()
    return network


def as_stored(network: RecurrentNetwork) -> RecurrentNetwork:
    """The same network with its matrices rounded as a file rounds them."""
    return network_of(export(network, CALIBRATION, "m"))


@pytest.fixture(params=["kernels", "numpy"])
def products(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "available", lambda: False)


@pytest.mark.parametrize("hidden_width", [0, WIDTH])
def test_one_token_at_a_time_is_the_network_within_rounding(products, hidden_width):
    whole, (trace,) = random_network(hidden_width), conversations(1, 30)
    stored = export(whole, CALIBRATION, "m")
    network = as_stored(whole)
    windows = Windows([trace], SHAPE.experts, 3, tokens=30, batch=1, hidden_width=hidden_width)
    with torch.no_grad():
        odds = network(windows.load([(0, 0)]))[0].numpy()
    expected = 1 / (1 + np.exp(-(odds * CALIBRATION[:, 0, None, None] + CALIBRATION[:, 1, None, None])))
    predictor = RecurrentPredictor(stored)
    for _ in range(2):  # the second conversation knows nothing of the first
        for one in replay(predictor, trace):
            assert one.probabilities == pytest.approx(expected[one.position], abs=2e-5)


def test_eight_bits_change_probabilities_little():
    network, (trace,) = random_network(state_width=64, head_width=64), conversations(1, 30)
    batch = Windows([trace], SHAPE.experts, 3, tokens=30, batch=1, hidden_width=WIDTH).load([(0, 0)])
    with torch.no_grad():
        before = network(batch).sigmoid()
        after = as_stored(network)(batch).sigmoid()
    assert float((after - before).abs().mean()) < 2e-3


def test_only_the_end_of_a_long_prompt_is_read():
    (trace,) = conversations(1, READ_TOKENS + 50)
    predictor = RecurrentPredictor(export(random_network(), CALIBRATION, "m"))
    answers = []
    for rows in (trace, trace.rows(50, len(trace))):
        predictor.begin()
        predictor.read(rows)
        answers.append(predictor.predict(3).copy())
    assert np.array_equal(*answers)


def test_starting_from_tokens_gives_the_table_without_training():
    known = conversations(60)
    network = random_network(token_width=24, head_width=1)
    start_from_tokens(network, known)
    scores = Scores(SHAPE.layers, SHAPE.experts, (2,))
    predictor = RecurrentPredictor(export(network, CALIBRATION, "m"))
    for trace in conversations(2, seed=3):
        for one in replay(predictor, trace):
            scores.add(one.probabilities[0], trace.multi_hot(SHAPE.experts)[one.position])
    by_layer = scores.recall_by_layer(2)
    assert min(by_layer[0], by_layer[3]) > 0.97 and scores.recall(2) > 0.7


def test_a_file_gives_back_the_predictor(tmp_path):
    stored = export(random_network(), CALIBRATION, "fingerprint", {"tokens": 7})
    write_predictor(tmp_path / "p.safetensors", stored)
    read = read_predictor(tmp_path / "p.safetensors", "fingerprint")
    assert (read.kind, read.shape, read.sizes, read.history) == ("recurrent", SHAPE, stored.sizes, {"tokens": 7})
    first, second = RecurrentPredictor(stored), RecurrentPredictor(read)
    assert np.array_equal(first.predict(5), second.predict(5))
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]


def test_files_that_will_not_do_say_why(tmp_path, monkeypatch):
    file = tmp_path / "p.safetensors"
    with pytest.raises(PredictorUnusable, match="cannot be read"):
        read_predictor(file)
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(PredictorUnusable, match="cannot be read"):
        read_predictor(file)
    save_file({"x": np.zeros(2)}, file)
    with pytest.raises(PredictorUnusable, match="not a predictor"):
        read_predictor(file)
    write_predictor(file, export(random_network(), CALIBRATION, "one"))
    with pytest.raises(PredictorUnusable, match="of model one, not of two"):
        read_predictor(file, "two")
    save_file(load_file(file), file, metadata={"expertflow_predictor": json.dumps({"format": 1})})
    with pytest.raises(PredictorUnusable, match="kind|model|shape"):
        read_predictor(file)
    monkeypatch.setattr(weights_file, "FORMAT_VERSION", 2)
    with pytest.raises(PredictorUnusable, match="format 1"):
        read_predictor(file)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "p.safetensors"
    stored = export(random_network(), CALIBRATION, "old")
    write_predictor(file, stored)

    def full_disk(arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_file, "save_file", full_disk)
    with pytest.raises(OSError):
        write_predictor(file, export(random_network(), CALIBRATION, "new"))
    assert read_predictor(file).model == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_built_in_models_size_fits_twelve_megabytes(tmp_path):
    shape = RoutingShape(layers=30, experts=16, top_k=2, vocabulary=49_152)
    network = RecurrentNetwork(shape, RecurrentSizes(hidden_width=576))
    write_predictor(tmp_path / "p.safetensors", export(network, CALIBRATION, "m"))
    assert (tmp_path / "p.safetensors").stat().st_size < 12e6


def test_a_stored_network_that_learns_on_says_the_same_with_channels_made_comparable():
    (trace,) = conversations(1, 30)
    batch = Windows([trace], SHAPE.experts, 3, tokens=30, batch=1, hidden_width=WIDTH).load([(0, 0)])
    network = as_stored(random_network())
    with torch.no_grad():
        before = network(batch)
        network.rescale(torch.linspace(0.1, 3, WIDTH))
        torch.testing.assert_close(network(batch), before, rtol=1e-4, atol=1e-5)
