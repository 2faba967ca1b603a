"""Recorded answers dealt out to several nodes: what each node's passes move into a cache of its own; no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.lab.grouping.pass_cache import PassCache

Line = tuple[int, str]


class Dealer(Protocol):
    """Hands out a job's lines; an answer's number is its line's."""

    def take(self, ticket: int, worker: str) -> list[Line] | None:
        """Lines for `worker`, none at the end; None: not before others are written."""

    def written(self, number: int) -> None:
        """All lines before `number` are answered."""


@dataclass(frozen=True)
class NodeRun:
    """Sums over a node's passes. `distinct`: experts visited, each once a pass; `moved`: those that were not there."""

    answers: int
    tokens: int
    passes: int
    distinct: int
    moved: int

    @property
    def hit_rate(self) -> float:
        return 1 - self.moved / self.distinct if self.distinct else 0.0


def replay_on_nodes(
    answers: Sequence[np.ndarray], dealer: Dealer, caches: Sequence[PassCache], at_once: int
) -> list[NodeRun]:
    """Each node's run. `answers`: bool [tokens, layers, experts] of each line; `at_once` of them share a node's passes.

    Nodes keep step, a pass each, and work as the job's engines do: the next ticket when the last one is answered.
    """
    nodes = [_Node(f"node {number}", cache, at_once) for number, cache in enumerate(caches)]
    done: set[int] = set()
    tickets = written = 0
    working = list(nodes)
    while working:
        for node in list(working):
            if node.idle and (lines := dealer.take(tickets, node.name)) is not None:
                tickets += 1
                node.give([number for number, _ in lines])
                if not lines:
                    working.remove(node)
            done.update(node.step(answers))
        while written in done:
            written += 1
        dealer.written(written)
    return [node.run() for node in nodes]


class _Node:
    def __init__(self, name: str, cache: PassCache, at_once: int) -> None:
        self.name = name
        self._cache, self._at_once = cache, at_once
        self._waiting: deque[int] = deque()
        self._position: dict[int, int] = {}
        self._answers = self._tokens = self._passes = 0

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._position

    def give(self, numbers: Sequence[int]) -> None:
        self._waiting.extend(numbers)
        self._answers += len(numbers)

    def step(self, answers: Sequence[np.ndarray]) -> list[int]:
        """One pass over a token of each answer in progress; returns those that end with it."""
        while self._waiting and len(self._position) < self._at_once:
            self._position[self._waiting.popleft()] = 0
        if not self._position:
            return []
        self._cache.read(np.logical_or.reduce([answers[number][at] for number, at in self._position.items()]))
        self._passes += 1
        self._tokens += len(self._position)
        for number in self._position:
            self._position[number] += 1
        ended = [number for number, at in self._position.items() if at == len(answers[number])]
        for number in ended:
            del self._position[number]
        return ended

    def run(self) -> NodeRun:
        return NodeRun(self._answers, self._tokens, self._passes, self._cache.distinct, self._cache.moved)
