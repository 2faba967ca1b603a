"""Training: better than a table where context matters, the same whether or not it was interrupted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.errors import Cancelled, InvalidSetting
from engine.routing.predictors.recurrent import RecurrentPredictor, export
from engine.routing.predictors.recurrent_network import RecurrentNetwork, RecurrentSizes
from engine.routing.predictors.token_table import fit_token_table
from engine.routing.scoring.evaluation import evaluate
from engine.routing.training.calibration import fit_calibration
from engine.routing.training.train import TrainingSettings, recall_of, train
from engine.routing.training.training_loss import loss_of
from engine.routing.training.windows import Windows
from tests.routing.synthetic import SHAPE, WIDTH, conversations

SIZES = RecurrentSizes(horizon=2, token_width=16, state_width=48, head_width=48, hidden_width=WIDTH, dropout=0.1)
QUICK = TrainingSettings(steps=12, batch=4, window=16, measure_every=4)


def windows(count: int, seed: int = 0, tokens: int = 16, batch: int = 4, horizon: int = 2) -> Windows:
    return Windows(conversations(count, seed=seed), SHAPE.experts, horizon, tokens, batch, hidden_width=WIDTH)


def network(seed: int = 0) -> RecurrentNetwork:
    torch.manual_seed(seed)
    return RecurrentNetwork(SHAPE, SIZES)


def weights(of: RecurrentNetwork) -> list[np.ndarray]:
    return [value.numpy() for value in of.state_dict().values()]


def test_context_is_learnt_and_probabilities_mean_something():
    settings = TrainingSettings(steps=300, batch=8, window=32, rate=1e-2, measure_every=50)
    known, unknown = windows(120, tokens=32, batch=8), windows(10, 7, tokens=32, batch=8)
    learner = network()
    state = train(learner, known, unknown, settings)
    asked = conversations(8, seed=9)
    predictor = RecurrentPredictor(export(learner, fit_calibration(learner, unknown), "m"))
    ours, table = evaluate(predictor, asked), evaluate(fit_token_table(SHAPE, known.traces), asked)
    assert table.rows[0].recall(2) < 0.82
    assert ours.rows[0].recall(2) > 0.9
    assert ours.rows[0].recall(2) == pytest.approx(state.best_recall, abs=0.03)
    assert [row.calibration_error() < 0.02 for row in ours.rows] == [True, True]


def test_an_interrupted_run_ends_in_the_same_weights(tmp_path):
    whole, left = network(), network()
    expected = train(whole, windows(6), windows(2, 5), QUICK)
    checkpoint = tmp_path / "run.checkpoint"
    for stop_at in (5, 9):
        steps: list[int] = []
        with pytest.raises(Cancelled):
            train(
                left,
                windows(6),
                windows(2, 5),
                QUICK,
                checkpoint,
                on_progress=lambda stage, done, total, steps=steps: steps.append(done),
                must_stop=lambda steps=steps, stop_at=stop_at: steps[-1] == stop_at,
            )
        left = network(seed=stop_at)  # another process would begin with other weights
    state = train(left, windows(6), windows(2, 5), QUICK, checkpoint)
    assert state.measured == expected.measured and state.step == 12
    assert all(np.array_equal(a, b) for a, b in zip(weights(whole), weights(left), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["run.checkpoint"]


def test_a_run_with_other_settings_is_not_gone_on_with(tmp_path):
    checkpoint = tmp_path / "run.checkpoint"
    with pytest.raises(Cancelled):
        train(network(), windows(6), windows(2, 5), QUICK, checkpoint, must_stop=lambda: True)
    with pytest.raises(InvalidSetting, match="other settings"):
        train(network(), windows(5), windows(2, 5), QUICK, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(InvalidSetting, match="cannot be gone on"):
        train(network(), windows(6), windows(2, 5), QUICK, checkpoint)


def test_a_seed_decides_everything_and_nothing_outside_is_touched():
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    runs = []
    for seed in (0, 0, 1):
        learner = RecurrentNetwork(SHAPE, SIZES)
        learner.load_state_dict(network().state_dict())
        torch.random.set_rng_state(before)
        train(learner, windows(6), windows(2, 5), TrainingSettings(**{**QUICK.__dict__, "seed": seed}))
        runs.append(weights(learner))
    assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    assert torch.equal(before, torch.random.get_rng_state()) and torch.get_num_threads() == threads


def test_it_ends_when_it_no_longer_gets_better_and_keeps_the_best():
    settings = TrainingSettings(steps=400, batch=4, window=16, rate=0.3, measure_every=2, patience=3)
    learner, unknown = network(), windows(4, 5)
    state = train(learner, windows(6), unknown, settings)
    assert state.step < 400 and len(state.measured) - state.best_step // 2 == 3
    assert recall_of(learner, unknown) == pytest.approx(state.best_recall)


def test_minutes_limit_the_steps():
    settings = TrainingSettings(steps=100_000, batch=4, window=16, measure_every=50, minutes=0.02, patience=1000)
    state = train(network(), windows(6), windows(2, 5), settings)
    assert 15 < state.steps < 5000 and state.seconds < 6


@pytest.mark.parametrize("listwise", [True, False])
def test_padding_and_what_lies_after_the_end_do_not_count(listwise):
    trace = conversations(1, 20)[0]
    whole = Windows([trace], SHAPE.experts, 2, tokens=20, batch=1)
    padded = Windows([trace], SHAPE.experts, 2, tokens=32, batch=1)
    chance = torch.Generator().manual_seed(0)
    odds = torch.randn((1, 32, 2, SHAPE.layers, SHAPE.experts), generator=chance)
    exact = loss_of(odds[:, :20], whole.load([(0, 0)]), 0.5, listwise)
    assert loss_of(odds, padded.load([(0, 0)]), 0.5, listwise) == pytest.approx(float(exact), rel=1e-6)


def test_loss_of_knowing_nothing_is_known():
    batch = Windows(conversations(1, 20), SHAPE.experts, 2, tokens=20, batch=1).load([(0, 0)])
    blank = torch.zeros((1, 20, 2, SHAPE.layers, SHAPE.experts))
    assert loss_of(blank, batch, 0.5, listwise=True) == pytest.approx(1.5 * np.log(8), rel=1e-5)
    assert loss_of(blank, batch, 0.5, listwise=False) == pytest.approx(1.5 * 4 * np.log(2), rel=1e-5)


def test_windows_cover_every_token_once_and_line_up_with_what_came_before():
    cut = windows(3, tokens=16)
    for batches in (cut.in_order(), cut.epoch(0, 0), cut.epoch(0, 1)):
        seen = np.concatenate([cut.load(b).tokens[cut.load(b).inside].numpy() for b in batches])
        everything = np.concatenate([trace.token_ids for trace in cut.traces])
        assert np.array_equal(np.sort(seen), np.sort(everything))
    (trace,) = conversations(1)
    one = Windows([trace], SHAPE.experts, 2, 16, 1, hidden_width=WIDTH, prompt=6).load([(0, 8)])
    used = trace.multi_hot(SHAPE.experts).reshape(len(trace), -1)
    assert np.array_equal(one.before[0].numpy() > 0, used[7:23] > 0)
    assert np.array_equal(one.hidden[0].numpy(), trace.hidden[7:23].astype(np.float32))
    assert np.array_equal(one.used[0].flatten(1).numpy(), used[8:25])
    assert one.prompt[0].tolist() == trace.token_ids[2:8].tolist()
