"""The paper's predictor: its size, and token by token the same as in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.routing.predictors.token_transformer import TokenTransformer, TokenTransformerPredictor, export
from engine.routing.predictors.weights_file import read_predictor, write_predictor
from engine.routing.scoring.replay import replay
from engine.routing.shape import RoutingShape
from engine.routing.training.train import TrainingSettings, recall_of, train
from engine.routing.training.windows import Windows
from tests.routing.synthetic import SHAPE, conversations

SMALL = {"d_model": 16, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 8}
CALIBRATION = np.array([[1.2, -0.1]])


def small_network() -> TokenTransformer:
    torch.manual_seed(0)
    network = TokenTransformer(SHAPE, SMALL).eval()
    with torch.no_grad():
        network.head.weight.normal_()
        for parameter in network.parameters():
            parameter.copy_(parameter.half().float())  # what a file holds
    return network


def test_it_has_the_papers_size():
    shape = RoutingShape(layers=24, experts=60, top_k=4, vocabulary=32_000)
    parameters = sum(p.numel() for p in TokenTransformer(shape).parameters())
    assert parameters * 2 / 2**20 == pytest.approx(7.21, rel=0.02)


@pytest.mark.parametrize("prompt", [0, 10])
def test_token_by_token_is_one_pass(tmp_path, prompt):
    network, (trace,) = small_network(), conversations(1, 40)
    windows = Windows([trace], SHAPE.experts, 1, 40, 1, prompt=network.prompt_tokens)
    with torch.no_grad():
        odds = network(windows.load([(0, prompt)]))[0].numpy()
    expected = 1 / (1 + np.exp(-(odds * 1.2 - 0.1)))
    write_predictor(tmp_path / "t5.safetensors", export(network, CALIBRATION, "m"))
    predictor = TokenTransformerPredictor(read_predictor(tmp_path / "t5.safetensors", "m"))
    for _ in range(2):  # the second conversation knows nothing of the first
        found = {one.position: one.probabilities.copy() for one in replay(predictor, trace, prompts_too=not prompt)}
        assert sorted(found) == list(range(prompt, 40))
        for position, probabilities in found.items():
            assert probabilities == pytest.approx(expected[position - prompt], abs=1e-5)


def test_a_second_question_is_read_like_the_answer():
    (trace,) = conversations(1, 20)
    predictor = TokenTransformerPredictor(export(small_network(), CALIBRATION, "m"))
    last = []
    for reads in (True, False):
        predictor.begin()
        predictor.read(trace.rows(0, 5))
        predictor.predict(int(trace.token_ids[5]))
        if reads:
            predictor.read(trace.rows(6, 9))
        else:
            for token in trace.token_ids[6:9].tolist():
                predictor.predict(token)
        last.append(predictor.predict(2).copy())
    assert last[0] == pytest.approx(last[1], abs=1e-6)


def test_it_learns():
    network = TokenTransformer(SHAPE, SMALL)
    cut = Windows(conversations(2, 24), SHAPE.experts, 1, 12, 4, prompt=network.prompt_tokens)
    before = recall_of(network, cut)
    state = train(network, cut, cut, TrainingSettings(steps=30, batch=4, window=12, rate=2e-2, measure_every=30))
    assert state.best_recall > max(before, 2 / SHAPE.experts) + 0.05
