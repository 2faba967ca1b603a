"""One way of grouping, one pool, one cache: what its passes visit and move."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from engine.lab.grouping.pass_cache import PassCache
from engine.lab.grouping.pool import Pool
from engine.scheduling.fairness import FairPick, least_bound
from engine.scheduling.groupings import Grouping, Waiting


@dataclass(frozen=True)
class GroupingRun:
    """Sums over a pool's tokens. `worst_wait`: passes in which a waiting token was passed over, at most."""

    tokens: int
    passes: int
    distinct: int
    moved: int
    worst_wait: int
    scheduling_seconds: float


def replay(
    pool: Pool, cache: PassCache, grouping: Grouping, size: int, bound: int, tokens: int, knows_truth: bool = False
) -> GroupingRun:
    """Reads `tokens` tokens of the pool's chats, in groups of `size`, and as many before, which are not counted.

    Every chat always has a token waiting; one that ends begins again. `knows_truth`: the grouping is
    given true paths in place of predicted ones.
    """
    state = _Chats(pool, max(bound, 2 * least_bound(len(pool), size)))
    passes = worst = read = 0
    seconds, before = 0.0, (0, 0)
    while read < 2 * tokens:
        began = time.perf_counter()
        group = state.choose(pool, cache, grouping, size, knows_truth)
        took = time.perf_counter() - began
        cache.read(np.logical_or.reduce(pool.true[group, state.position[group]]))
        worst = max(worst, state.read(group))
        counted = read >= tokens
        read += len(group)
        if counted:
            passes, seconds = passes + 1, seconds + took
        else:
            before, counted_from = (cache.distinct, cache.moved), read
    return GroupingRun(read - counted_from, passes, cache.distinct - before[0], cache.moved - before[1], worst, seconds)


class _Chats:
    def __init__(self, pool: Pool, bound: int) -> None:
        self.position = np.zeros(len(pool), np.int64)
        self._tokens = pool.true.shape[1]
        self._passed = np.zeros(len(pool), np.int64)
        self._bound = bound
        self._places = np.arange(len(pool))

    def choose(self, pool: Pool, cache: PassCache, grouping: Grouping, size: int, knows_truth: bool) -> list[int]:
        order = np.argsort(-self._passed, kind="stable")
        waiting = Waiting(self._places, order)
        if grouping.needs_paths:
            source = pool.true if knows_truth else pool.predicted
            paths = source[self._places, self.position].astype(np.float32)
            waiting = Waiting(self._places, order, paths, cache.absent())
        pick = FairPick(self._bound - self._passed, len(pool) if grouping.takes_all else size)
        return grouping.group(waiting, pick)

    def read(self, group: list[int]) -> int:
        """The most times that one of them was passed over."""
        worst = int(self._passed[group].max())
        self._passed += 1
        self._passed[group] = 0
        self.position[group] = (self.position[group] + 1) % self._tokens
        return worst
