"""Experts that are computed with where they lie, without being acquired: their addresses, and who was used meanwhile.

As long as everybody who is needed is there, nobody is loaded and nobody has to leave: counters and policies can be told
later, in batches, in the order in which it happened.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.checkpoint.expert_key import ExpertKey

MOST_STEPS = 8  # whose uses wait to be counted


class DirectUse:
    """`addresses` int64 [layers, experts]: 0 for experts that are not resident."""

    def __init__(self, use_counts: np.ndarray) -> None:
        """`use_counts` int64 [layers, experts]: grows by what is counted."""
        self.addresses = np.zeros(use_counts.shape, np.int64)
        self._use_counts = use_counts
        self._uncounted: list[tuple[int, np.ndarray] | None] = []  # None: a step ended
        self._steps = 0

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to count."""
        return bool(self._uncounted)

    @property
    def is_full(self) -> bool:
        """Whether it is time to count."""
        return self._steps >= MOST_STEPS

    def used(self, first: int, experts: np.ndarray) -> None:
        """By layers `first`, `first` + 1, ...: int64 [layers, top k], distinct in each; keeps a copy."""
        self._uncounted.append((first, experts.copy()))

    def step_ended(self) -> None:
        self._uncounted.append(None)
        self._steps += 1

    def count(self, used: Callable[[ExpertKey], None], step_ended: Callable[[], None]) -> int:
        """Tells of every use and every step's end since the last time. Returns the number of uses."""
        uses = 0
        for entry in self._uncounted:
            if entry is None:
                step_ended()
                continue
            first, experts = entry
            self._use_counts[np.arange(first, first + len(experts))[:, None], experts] += 1
            for layer, chosen in enumerate(experts.tolist(), first):
                for expert in chosen:
                    used(ExpertKey(layer, expert))
            uses += experts.size
        self._uncounted.clear()
        self._steps = 0
        return uses
