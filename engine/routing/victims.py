"""Who is least worth keeping: a short list of the least valued experts, made anew when it is used up."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np

from engine.checkpoint.expert_key import ExpertKey
from engine.routing.expectation import list_least_valued

MOST_VICTIMS = 16  # listed at a time


class Victims:
    """Places are layer * experts + expert. value float32 [places]; absent float32 [places], 0 where there is a slot;
    keys: the expert of each place. All three stay their owners', who keep them up to date.
    """

    def __init__(self, value: np.ndarray, absent: np.ndarray, keys: Sequence[ExpertKey]) -> None:
        self._value, self._absent, self._keys = value, absent, keys
        self._listed: list[int] = []  # the least valued last
        self._places = np.zeros(MOST_VICTIMS, np.int64)  # scratch

    def outdated(self) -> None:
        """The values have changed: the list is made anew when somebody asks."""
        self._listed.clear()

    def weakest(self, blocked: Container[ExpertKey]) -> int | None:
        """The least valued place that has a slot and is not blocked."""
        known = self._first_evictable(blocked)
        if known is None:
            count = list_least_valued(self._value, self._absent, self._places)
            self._listed = self._places[:count].tolist()
            known = self._first_evictable(blocked)
        return known

    def _first_evictable(self, blocked: Container[ExpertKey]) -> int | None:
        listed, absent = self._listed, self._absent.item  # `item`: a number of an array in a fraction of the time
        while listed and absent(listed[-1]):
            listed.pop()
        for place in reversed(listed):
            if not absent(place) and self._keys[place] not in blocked:
                return place
        return None
