"""Nobody starves: a waiting token is passed over a bounded number of times, whatever a scheduler prefers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def least_bound(waiting: int, group_size: int) -> int:
    """The smallest bound that can be kept: with fewer, somebody is passed over however fair one is."""
    return max(-(-waiting // group_size) - 1, 0)


class FairPick:
    """One group being picked. Whoever is picked must be `allowed`; then the bound can be kept for ever after.

    slack: int [waiting], how many times each may still be passed over, which is the bound for a token that has just
    come. Of the tokens with slack <= s, no more than group size * s may be left over, since s passes are all there is
    for them (earliest deadline first is feasible exactly then). Where more are owed than there is room, because groups
    have become smaller, the most urgent go first.
    """

    def __init__(self, slack: np.ndarray, group_size: int) -> None:
        self._slack = np.asarray(slack, np.int64)
        self.room = min(group_size, len(self._slack))
        self.taken: list[int] = []
        steps = np.arange(max(int(self._slack.max(initial=0)), 0) + 1)
        counted = np.searchsorted(np.sort(self._slack), steps, side="right")
        self._due = counted - group_size * steps  # of those with slack <= s, so many must go now
        self._free = np.ones(len(self._slack), bool)

    def allowed(self) -> np.ndarray:
        """bool [waiting]: who may be picked next."""
        tight = np.flatnonzero(self._due >= self.room)
        if not len(tight) or not self.room:
            return self._free & bool(self.room)
        return self._free & (self._slack <= tight[0])

    def take(self, place: int) -> None:
        """Picks a waiting token that is allowed."""
        assert self._free[place] and self.room
        self._free[place] = False
        self._due[max(int(self._slack[place]), 0) :] -= 1
        self.room -= 1
        self.taken.append(place)

    def take_in_order(self, preferred: Sequence[int]) -> list[int]:
        """Fills the group: whoever must go, then as `preferred` says. Returns the places."""
        while self.room:
            allowed = self.allowed()
            chosen = next((place for place in preferred if allowed[place]), None)
            if chosen is None:
                break
            self.take(chosen)
        return self.taken

    def take_owed(self, preferred: Sequence[int]) -> list[int]:
        """Whoever must go now and is not picked yet. Returns all places."""
        while self.room and (self._due > 0).any():
            allowed = self.allowed() & (self._slack <= np.flatnonzero(self._due > 0)[-1])
            self.take(next(place for place in preferred if allowed[place]))
        return self.taken
