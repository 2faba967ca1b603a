"""Which worker a prompt is meant for: in turn, or by the experts it is expected to use.

In turn unless asked otherwise: measured on recorded routing (`bench batch --simulate --nodes`), going by what is
expected of prompts moves 3 % fewer bytes to 1 % more, by what their answers really use a tenth fewer at most.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from engine.scheduling.similar import similar_groups

UseOf = Callable[[int, str], np.ndarray | None]
ROUND_ROBIN, ROUTES = "round-robin", "routes"


class Spread(Protocol):
    """Deals prompts to as many places as there are workers."""

    def describe(self, number: int, text: str) -> np.ndarray | None:
        """What `place` wants to know of a line."""

    def begin(self, described: Sequence[np.ndarray | None]) -> None:
        """Told once, before any `place`, of the first few hundred lines, which are placed like the others later."""

    def place(self, described: np.ndarray | None, waiting: Sequence[int]) -> int:
        """`waiting`: how many prompts each place has that nobody has begun."""


class RoundRobin:
    """One after the other."""

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
            points = points - self._mean
            groups = similar_groups(points > 0, -(-len(points) // self._places), np.random.default_rng(0))
            means = np.stack([points[group].mean(0) for group in groups])
            self._centres = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)

    def place(self, described: np.ndarray | None, waiting: Sequence[int]) -> int:
        if described is None or self._mean is None or self._centres is None:
            return int(np.argmin(waiting))
        nearness = self._centres @ (described - self._mean)
        for place in np.argsort(-nearness).tolist():
            if waiting[place] < self._most_waiting:
                return int(place)
        return int(np.argmin(waiting))
