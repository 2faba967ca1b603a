"""Evicting at random: what a tier below a cache needs, which sees only what that cache misses."""

from __future__ import annotations

import random
from collections.abc import Container

from engine.cache.policies import EvictionPolicy
from engine.checkpoint.expert_key import ExpertKey

_TRIES = 8


class RandomEviction(EvictionPolicy):
    """Any expert that is not in use may leave, with equal chance.

    A prompt is a cyclic scan over all experts: LRU keeps none of a scan that is larger than the tier, at random most
    of what fits is found again. In decoding the slots above have used up what recency tells.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._keys: list[ExpertKey] = []
        self._position: dict[ExpertKey, int] = {}

    def inserted(self, key: ExpertKey) -> None:
        self._position[key] = len(self._keys)
        self._keys.append(key)

    def removed(self, key: ExpertKey) -> None:
        position, last = self._position.pop(key), self._keys.pop()
        if last != key:
            self._keys[position] = last
            self._position[last] = position

    def used(self, key: ExpertKey) -> None:
        """Makes no difference."""

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        for _ in range(_TRIES if self._keys else 0):
            key = self._random.choice(self._keys)
            if key not in blocked:
                return key
        return next((key for key in self._keys if key not in blocked), None)
