"""Eviction by predicted use: out goes the expert whose next use is expected last."""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np

from engine.cache.policies import EvictionPolicy
from engine.checkpoint.expert_key import ExpertKey
from engine.routing.expectation import least_valued


class PredictedNextUse(EvictionPolicy):
    """`value` float32 [layers, experts] is read anew at each eviction; its owner keeps it up to date.

    `absent` float32 [layers * experts]: infinity for experts without a slot, so that they are never chosen, else 0.
    It may be another one's, who is told; this one then need not be.
    """

    def __init__(self, value: np.ndarray, absent: np.ndarray | None = None) -> None:
        self._value = value.reshape(-1)
        self._experts = value.shape[1]
        self.absent = np.full(self._value.shape, np.inf, np.float32) if absent is None else absent

    def inserted(self, key: ExpertKey) -> None:
        self.absent[self._place(key)] = 0

    def removed(self, key: ExpertKey) -> None:
        self.absent[self._place(key)] = np.inf

    def used(self, key: ExpertKey) -> None:
        """The forecast hears of it elsewhere."""

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        absent = self.absent
        while (place := least_valued(self._value, absent)) >= 0:
            key = ExpertKey(*divmod(place, self._experts))
            if key not in blocked:
                return key
            if absent is self.absent:
                absent = absent.copy()
            absent[place] = np.inf
        return None

    def _place(self, key: ExpertKey) -> int:
        return key.layer * self._experts + key.expert


class SwitchedEviction(EvictionPolicy):
    """Two policies side by side, both always up to date; `use_first()` says whose choice counts."""

    def __init__(self, first: EvictionPolicy, second: EvictionPolicy, use_first: Callable[[], bool]) -> None:
        self._both = (first, second)
        self._use_first = use_first

    def inserted(self, key: ExpertKey) -> None:
        for policy in self._both:
            policy.inserted(key)

    def removed(self, key: ExpertKey) -> None:
        for policy in self._both:
            policy.removed(key)

    def used(self, key: ExpertKey) -> None:
        for policy in self._both:
            policy.used(key)

    def step_ended(self) -> None:
        for policy in self._both:
            policy.step_ended()

    def resized(self, slots: int) -> None:
        for policy in self._both:
            policy.resized(slots)

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        first, second = self._both
        return (first if self._use_first() else second).victim(blocked, incoming)
