"""Which worker a prompt is meant for: in turn, or by the experts it is expected to use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

ROUNDS = 8  # of moving the centres; few hundred points settle sooner

UseOf = Callable[[int, str], np.ndarray | None]


class Spread(Protocol):
    """Deals prompts to as many places as there are workers."""

    def describe(self, number: int, text: str) -> np.ndarray | None:
        """What `place` wants to know of a line."""

    def begin(self, described: Sequence[np.ndarray | None]) -> None:
        """Told once, before any `place`, of the first few hundred lines, which are placed like the others later."""

    def place(self, described: np.ndarray | None, waiting: Sequence[int]) -> int:
        """`waiting`: how many prompts each place has that nobody has begun."""


class RoundRobin:
    """One after the other: the baseline."""

    def __init__(self, places: int) -> None:
        self._turns = itertools.cycle(range(places))

    def describe(self, number: int, text: str) -> np.ndarray | None:
        return None

    def begin(self, described: Sequence[np.ndarray | None]) -> None:
        pass

    def place(self, described: np.ndarray | None, waiting: Sequence[int]) -> int:
        return next(self._turns)


class ByRoutes:
    """Prompts that are expected to use the same experts go to one place, as long as it has room.

    `use_of(number, text)`: expected use of experts, any shape, None for a line that is no prompt. `most_waiting`
    bounds what gathers at a place: a file that has one topic only must not keep the others idle.
    """

    def __init__(self, places: int, use_of: UseOf, most_waiting: int) -> None:
        self._places, self._use_of, self._most_waiting = places, use_of, most_waiting
        self._mean: np.ndarray | None = None
        self._centres: np.ndarray | None = None

    def describe(self, number: int, text: str) -> np.ndarray | None:
        use = self._use_of(number, text)
        return None if use is None else use.reshape(-1)

    def begin(self, described: Sequence[np.ndarray | None]) -> None:
        known = [one for one in described if one is not None]
        if len(known) >= self._places:
            points = np.stack(known)
            self._mean = points.mean(0)
            self._centres = balanced_centres(_directions(points - self._mean), self._places)

    def place(self, described: np.ndarray | None, waiting: Sequence[int]) -> int:
        if described is None or self._mean is None or self._centres is None:
            return int(np.argmin(waiting))
        nearness = self._centres @ (described - self._mean)
        for place in np.argsort(-nearness).tolist():
            if waiting[place] < self._most_waiting:
                return int(place)
        return int(np.argmin(waiting))


def balanced_centres(directions: np.ndarray, number: int) -> np.ndarray:
    """float [number, width]: mean directions of as many groups of about the same size; k-means with a bound.

    directions: float [points, width], unit vectors (or zeros), at least `number` of them.
    """
    chosen = [0]
    while len(chosen) < number:  # each begins as far as can be from those before
        chosen.append(int(np.argmin((directions @ directions[chosen].T).max(1))))
    centres = directions[chosen]
    for _ in range(ROUNDS):
        groups = balanced_groups(directions @ centres.T)
        centres = _directions(np.stack([directions[groups == group].mean(0) for group in range(number)]))
    return centres


def balanced_groups(nearness: np.ndarray) -> np.ndarray:
    """int [points]: for each its nearest group that has room, those that care most first; none is left empty.

    nearness: float [points, groups].
    """
    points, number = nearness.shape
    room = np.full(number, points // number)
    room[: points % number] += 1
    ordered = np.sort(nearness, axis=1)
    care = ordered[:, -1] - ordered[:, -2] if number > 1 else ordered[:, -1]
    groups = np.empty(points, np.int64)
    for point in np.argsort(-care).tolist():
        open_ones = np.where(room > 0, nearness[point], -np.inf)
        groups[point] = group = int(np.argmax(open_ones))
        room[group] -= 1
    return groups


def _directions(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
