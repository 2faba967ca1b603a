"""Telling a policy later, all at once, what it need not know before it is asked for a victim.

Between two layers' computation everything but their weights has left the processor's caches, and a few lines of Python
take several times as long as the same lines repeated. A policy that is only held ready is therefore told in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from engine.cache.policies import EvictionPolicy
from engine.checkpoint.expert_key import ExpertKey

STEPS = 8  # between two batches


class DeferredEviction(EvictionPolicy):
    """Decides as `policy` would if it were told everything at once."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self._policy = policy
        self._untold: list[tuple[Callable[[ExpertKey], None], ExpertKey] | None] = []  # None: a step ended
        self._steps = 0

    def inserted(self, key: ExpertKey) -> None:
        self._untold.append((self._policy.inserted, key))

    def removed(self, key: ExpertKey) -> None:
        self._untold.append((self._policy.removed, key))

    def used(self, key: ExpertKey) -> None:
        self._untold.append((self._policy.used, key))

    def step_ended(self) -> None:
        self._untold.append(None)
        self._steps += 1
        if self._steps >= STEPS:
            self._catch_up()

    def resized(self, slots: int) -> None:
        self._catch_up()
        self._policy.resized(slots)

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        self._catch_up()
        return self._policy.victim(blocked, incoming)

    def _catch_up(self) -> None:
        for event in self._untold:
            if event is None:
                self._policy.step_ended()
            else:
                tell, key = event
                tell(key)
        self._untold.clear()
        self._steps = 0
