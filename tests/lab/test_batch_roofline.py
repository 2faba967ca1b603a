"""The bound that joint steps are held against."""

from __future__ import annotations

import pytest

from engine.checkpoint.dense_model import open_checkpoint
from engine.engine import Engine
from engine.generation.request import BatchPrompt
from engine.lab.batch_roofline import MachineLimits, ModelWork, RecordedSteps, Roofline, model_work
from tests.tiny_models import tiny_checkpoint


def test_a_step_reads_weights_once_and_multiplies_them_with_every_row():
    work = ModelWork(
        dense_bytes=100, dense_parameters=50, expert_bytes=20.0, expert_parameters=10.0, experts_per_token=4
    )
    assert work.step_seconds(8, 6, MachineLimits(10.0, 1.0)) == (22.0, 2 * 8 * (50 + 40))


def test_a_models_work_is_that_of_its_matrices():
    path = tiny_checkpoint("mixtral")
    index = open_checkpoint(path).index
    with Engine.load(path, budget="100%", policy="lru") as engine:
        work, config = model_work(engine._model, index), engine._model.config
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * heads * engine._model.model.layers[0].self_attn.head_dim * config.hidden_size
    per_layer = attention + config.num_local_experts * config.hidden_size
    assert work.dense_parameters == config.num_hidden_layers * per_layer + config.vocab_size * config.hidden_size
    assert work.expert_parameters == 3 * config.hidden_size * config.intermediate_size
    assert work.expert_bytes * sum(index.experts_per_layer) == index.total_expert_bytes
    assert work.experts_per_token == config.num_hidden_layers * config.num_experts_per_tok


def test_steps_of_one_size_are_told_apart_from_others():
    used = iter((0, 10, 10, 14, 14, 30))
    steps = RecordedSteps(True, lambda: next(used))
    for chats, seconds in ((4, 2.0), (3, 9.0), (4, 4.0)):
        assert steps.joint(chats)
        steps.took(chats, True, seconds)
    assert steps.median_of(4) == (3.0, 13) and steps.median_of(3) == (9.0, 4) and steps.median_of(5) is None


@pytest.mark.parametrize(("budget", "told"), [("100%", True), ("50%", False)])
def test_passes_stand_beside_the_bound_where_every_expert_is_there(budget, told):
    path = tiny_checkpoint("mixtral")
    with Engine.load(path, budget=budget, policy="lru", batch_size=3) as engine:
        roofline = Roofline(engine, path)
        roofline.measure_machine()
        together, apart = roofline.record(True), roofline.record(False)
        for steps in (together, apart):
            list(engine.answer_batch([BatchPrompt(ids, 6) for ids in ([5, 6], [7], [8, 9])], steps))
        found = roofline.beside(together, 3)
    assert bool(found) is told and roofline.beside(apart, 3) == {} and roofline.beside(together, 4) == {}
    if told:
        share = found["full_step_tokens_per_second"] / found["roofline_tokens_per_second"]
        assert found["roofline_share"] == pytest.approx(share)
        assert 0 < found["roofline_share_at_best"] <= share
