"""The ring of recent routing: the newest decoded tokens, in order, and nothing else."""

from __future__ import annotations

import torch

from engine.engine import Engine
from engine.routing.traces.recent import RecentRouting
from engine.routing.traces.trace import NOBODY
from tests.tiny_models import tiny_checkpoint


def decode(recent: RecentRouting, *experts: int, decoded: bool = True, interrupted: bool = False) -> None:
    """One token of a model of two layers that use the same experts."""
    chat = recent.listener()
    chat.begin_pass(0, [7], decoded)
    for layer in range(2):
        chat.observed(layer, None, torch.tensor([experts]), None)
    if interrupted:
        chat.drop_pass()
    else:
        chat.end_pass()


def test_it_keeps_the_newest_decoded_tokens_in_order():
    recent = RecentRouting((8, 8), top_k=2, kept=3)
    assert len(recent.trace()) == 0
    for first in range(5):
        decode(recent, first, 7)
    decode(recent, 0, 1, decoded=False)
    decode(recent, 0, 1, interrupted=True)
    trace = recent.trace()
    assert trace.experts[:, 0].tolist() == [[2, 7], [3, 7], [4, 7]]
    assert trace.decoded.all() and recent.tokens == 5


def test_ids_past_a_layers_experts_are_nobody():
    recent = RecentRouting((8, 4), top_k=2)
    decode(recent, 3, 4)
    assert recent.trace().experts[0].tolist() == [[3, 4], [3, NOBODY]]


def test_an_engine_keeps_it_without_being_asked():
    with Engine.load(tiny_checkpoint("mixtral"), budget="50%") as engine:
        assert len(engine.recent_routing()) == 0
        ids = engine.generate_ids([5, 6, 7], 6)
        trace = engine.recent_routing()
        assert len(trace) == len(ids) - 1
        assert ((trace.experts >= 0) & (trace.experts < 8)).all()
