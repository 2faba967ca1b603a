"""The ways to choose which waiting tokens are read next, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.errors import InvalidSetting
from engine.scheduling.cheapest import cheapest_group
from engine.scheduling.cost import most_likely
from engine.scheduling.fairness import FairPick
from engine.scheduling.similar import similar_groups

AUTO, OFF, PAPER, CACHE_AWARE, WAVES = "auto", "off", "paper", "cache-aware", "waves"
RANDOM = "random"  # in simulations alone
SCHEDULER_NAMES = (AUTO, OFF, PAPER, CACHE_AWARE, WAVES)


@dataclass(frozen=True, eq=False)
class Waiting:
    """The tokens that wait, one for each chat, by place 0, 1, ...

    chats: int [waiting], whose each is; order: int [waiting], places, the longest waiting first; paths: float32
    [waiting, layers, experts], predicted probabilities, or None where the grouping asks for none; absent: float32
    [layers, experts], 1 where an expert is neither there nor coming, None with it.
    """

    chats: np.ndarray
    order: np.ndarray
    paths: np.ndarray | None = None
    absent: np.ndarray | None = None


class Grouping(Protocol):
    """`needs_paths`: whether it looks at predictions; `takes_all`: whether it goes beyond the group's size."""

    needs_paths: bool
    takes_all: bool

    def group(self, waiting: Waiting, pick: FairPick) -> list[int]:
        """Fills `pick` and returns its places."""


class ByArrival:
    """Whoever has waited longest: no grouping, the baseline."""

    needs_paths = takes_all = False

    def group(self, waiting: Waiting, pick: FairPick) -> list[int]:
        return pick.take_in_order(waiting.order.tolist())


class Waves(ByArrival):
    """All waiting tokens in one pass, so that each layer's distinct experts are visited once."""

    takes_all = True


class Cheapest:
    """See `cheapest.py`."""

    needs_paths, takes_all = True, False

    def group(self, waiting: Waiting, pick: FairPick) -> list[int]:
        assert waiting.paths is not None and waiting.absent is not None
        paths = waiting.paths.reshape(len(waiting.paths), -1)
        return cheapest_group(paths, waiting.absent.reshape(-1), pick, waiting.order)


class Rounds:
    """All waiting tokens are split into groups, which are read one after another; then they are split afresh.

    split(waiting, size): each group's places.
    """

    takes_all = False

    def __init__(self, split: Callable[[Waiting, int], list[np.ndarray]], needs_paths: bool) -> None:
        self._split, self.needs_paths = split, needs_paths
        self._planned: list[list[int]] = []  # chats

    def group(self, waiting: Waiting, pick: FairPick) -> list[int]:
        place_of = {chat: place for place, chat in enumerate(waiting.chats.tolist())}
        planned: list[int] = []
        while self._planned and not planned:
            planned = [place_of[chat] for chat in self._planned.pop(0) if chat in place_of]
        if not planned:
            groups = [waiting.chats[places].tolist() for places in self._split(waiting, pick.room)]
            self._planned = groups[1:]
            planned = [place_of[chat] for chat in groups[0]]
        for place in planned:
            if pick.allowed()[place]:
                pick.take(place)
        return pick.take_owed(waiting.order.tolist())


def by_similarity(top_k: int, seed: int = 0) -> Rounds:
    """The paper's, on each layer's `top_k` likeliest experts."""
    random = np.random.default_rng(seed)

    def split(waiting: Waiting, size: int) -> list[np.ndarray]:
        assert waiting.paths is not None
        return similar_groups(most_likely(waiting.paths, top_k).reshape(len(waiting.paths), -1), size, random)

    return Rounds(split, needs_paths=True)


def at_random(seed: int = 0) -> Rounds:
    """Groups of the same sizes that know nothing."""
    random = np.random.default_rng(seed)

    def split(waiting: Waiting, size: int) -> list[np.ndarray]:
        return np.array_split(random.permutation(len(waiting.chats)), -(-len(waiting.chats) // size))

    return Rounds(split, needs_paths=False)


def make_grouping(name: str, top_k: int, seed: int = 0) -> Grouping:
    """By one of SCHEDULER_NAMES but AUTO, or RANDOM. Raises InvalidSetting."""
    makers: dict[str, Callable[[], Grouping]] = {
        OFF: ByArrival,
        PAPER: lambda: by_similarity(top_k, seed),
        CACHE_AWARE: Cheapest,
        WAVES: Waves,
        RANDOM: lambda: at_random(seed),
    }
    check_scheduler(name, tuple(makers))
    return makers[name]()


def check_scheduler(name: str, known: tuple[str, ...] = SCHEDULER_NAMES) -> str:
    """`name`. Raises InvalidSetting for an unknown one."""
    if name in known:
        return name
    raise InvalidSetting(f"There is no token scheduler called {name!r}.", f"Choose one of: {', '.join(known)}.")
