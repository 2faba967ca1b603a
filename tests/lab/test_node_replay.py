"""Answers dealt out to nodes: every token is read once, by whom it was given to, into that node's own cache."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidSetting
from engine.lab.grouping.node_replay import replay_on_nodes
from engine.lab.grouping.pass_cache import pass_cache
from engine.routing.shape import RoutingShape

SHAPE = RoutingShape(layers=2, experts=6, top_k=1, vocabulary=100)


class Tickets:
    """Gives each worker its own lines, `size` a ticket."""

    def __init__(self, of_workers: dict[str, list[int]], size: int) -> None:
        self._of, self._size = {name: list(numbers) for name, numbers in of_workers.items()}, size
        self.told: list[int] = []

    def take(self, ticket, worker):
        given, self._of[worker] = self._of[worker][: self._size], self._of[worker][self._size :]
        return [(number, "") for number in given]

    def written(self, number):
        self.told.append(number)


def answer(expert: int, tokens: int) -> np.ndarray:
    used = np.zeros((tokens, SHAPE.layers, SHAPE.experts), bool)
    used[:, :, expert] = True
    return used


def caches(count: int, share: float):
    return [pass_cache("lru", SHAPE, share) for _ in range(count)]


def test_who_is_given_what_is_alike_moves_it_once_and_the_others_for_every_token():
    """Room for a token's experts: A and B in one cache throw each other out, in two caches nothing is thrown out."""
    lines = [answer(number % 2, 5) for number in range(4)]
    apart = replay_on_nodes(lines, Tickets({"node 0": [0, 2], "node 1": [1, 3]}, 1), caches(2, 1 / 6), at_once=1)
    assert [(run.answers, run.tokens, run.passes, run.distinct, run.moved) for run in apart] == [(2, 10, 10, 20, 2)] * 2
    assert apart[0].hit_rate == 0.9
    mixed = replay_on_nodes(lines, Tickets({"node 0": [0, 1], "node 1": [2, 3]}, 2), caches(2, 1 / 6), at_once=2)
    assert [(run.tokens, run.passes, run.distinct, run.moved) for run in mixed] == [(10, 5, 20, 20)] * 2


def test_a_node_that_has_nothing_to_do_moves_nothing_and_ends():
    runs = replay_on_nodes([answer(0, 3)], Tickets({"node 0": [0], "node 1": []}, 4), caches(2, 0.5), at_once=4)
    assert (runs[1].passes, runs[1].moved, runs[1].hit_rate) == (0, 0, 0.0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
def test_every_token_is_read_once_and_what_is_told_as_written_is(lengths, nodes, at_once, size):
    dealt = {f"node {node}": list(range(node, len(lengths), nodes)) for node in range(nodes)}
    tickets = Tickets(dealt, size)
    lines = [answer(number % 6, length) for number, length in enumerate(lengths)]
    runs = replay_on_nodes(lines, tickets, caches(nodes, 1.0), at_once)
    assert [run.answers for run in runs] == [len(numbers) for numbers in dealt.values()]
    assert [run.tokens for run in runs] == [sum(lengths[number] for number in numbers) for numbers in dealt.values()]
    assert all(run.moved <= SHAPE.outputs and run.passes <= run.tokens for run in runs)
    assert tickets.told == sorted(tickets.told) and tickets.told[-1] == len(lengths)


def test_what_fetches_on_a_guess_cannot_be_replayed():
    with pytest.raises(InvalidSetting, match="predictive"):
        pass_cache("predictive", SHAPE, 0.5)
