"""The best split of waiting tokens into equal groups that a long search finds, knowing their true paths: a bound.

Finding the least number of distinct experts is balanced hypergraph partitioning, which nobody solves exactly; simulated
annealing over swaps, from several starts, comes close and is what any quicker way of grouping is held against.
"""

from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import inlined, kernel

SWAPS = 30_000  # tried for each start
STARTS = 2
HOT, COLD = 3.0, 0.05  # experts more that a swap may cost, with probability 1/e, at the beginning and the end


def best_split(paths: np.ndarray, size: int, seed: int = 0, swaps: int = SWAPS) -> list[np.ndarray]:
    """bool [tokens, layers * experts] -> each group's places, sizes differing by at most one."""
    groups = -(-len(paths) // size)
    used, lengths = _listed(paths)
    best, least = np.zeros(len(paths), np.int64), np.inf
    for start in range(STARTS if groups > 1 else 0):
        random = np.random.default_rng((seed, start))
        group_of = random.permutation(np.arange(len(paths)) % groups)
        found = _anneal(used, lengths, group_of, groups, paths.shape[1], swaps, int(random.integers(2**31)))
        if found < least:
            best, least = group_of, found
    return [np.flatnonzero(best == group) for group in range(groups)]


def _listed(paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [tokens, most], each token's experts, and how many they are."""
    lengths = paths.sum(1).astype(np.int64)
    used = np.zeros((len(paths), max(int(lengths.max(initial=0)), 1)), np.int64)
    for token, row in enumerate(paths):
        used[token, : lengths[token]] = np.flatnonzero(row)
    return used, lengths


@kernel
def _anneal(
    used: np.ndarray, lengths: np.ndarray, group_of: np.ndarray, groups: int, experts: int, swaps: int, seed: int
) -> int:
    """Improves `group_of` in place; returns the distinct experts of all groups together at the end."""
    np.random.seed(seed)
    counts = np.zeros((groups, experts), np.int64)
    total = 0
    for token in range(len(lengths)):
        total += _moved(counts[group_of[token]], used[token, : lengths[token]], 1)
    best, best_total = group_of.copy(), total
    for step in range(swaps):
        one, other = np.random.randint(len(lengths)), np.random.randint(len(lengths))
        first, second = group_of[one], group_of[other]
        if first == second:
            continue
        change = _swap(counts, used, lengths, one, other, first, second)
        if change > 0 and np.random.random() > np.exp(-change / (HOT * (COLD / HOT) ** (step / swaps))):
            _swap(counts, used, lengths, one, other, second, first)
            continue
        group_of[one], group_of[other] = second, first
        total += change
        if total < best_total:
            best_total = total
            best[:] = group_of
    group_of[:] = best
    return best_total


@inlined
def _swap(
    counts: np.ndarray, used: np.ndarray, lengths: np.ndarray, one: int, other: int, first: int, second: int
) -> int:
    """Token `one` goes from group `first` to `second`, `other` the other way; returns the change in experts."""
    left, right = used[one, : lengths[one]], used[other, : lengths[other]]
    change = _moved(counts[first], left, -1) + _moved(counts[second], left, 1)
    return change + _moved(counts[second], right, -1) + _moved(counts[first], right, 1)


@inlined
def _moved(counts: np.ndarray, experts: np.ndarray, by: int) -> int:
    change = 0
    for expert in experts:
        before = counts[expert]
        counts[expert] = before + by
        change += (before + by > 0) - (before > 0)
    return change
