"""Telling a policy later, all at once, what it need not know before it is asked for a victim.

Between two layers' computation everything but their weights has left the processor's caches, and a few lines of Python
take several times as long as the same lines repeated. A policy that is only held ready is therefore told when it is
asked; of what was used long ago it never hears.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container

from engine.cache.policies import EvictionPolicy
from engine.checkpoint.expert_key import ExpertKey

REMEMBERED_STEPS = 128  # twice the half-life of what frequencies remember


class DeferredEviction(EvictionPolicy):
    """Decides as `policy` would if it were told at once, as long as it is asked every `REMEMBERED_STEPS` steps."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self._policy = policy
        self._known: set[ExpertKey] = set()  # who has a slot, as far as `policy` knows
        self._moved: dict[ExpertKey, bool] = {}  # whether who came or left since then has one
        self._steps: deque[list[ExpertKey]] = deque(maxlen=REMEMBERED_STEPS)  # uses, of steps that ended
        self._used: list[ExpertKey] = []  # in this step

    def inserted(self, key: ExpertKey) -> None:
        self._moved[key] = True

    def removed(self, key: ExpertKey) -> None:
        self._moved[key] = False

    def used(self, key: ExpertKey) -> None:
        self._used.append(key)

    def step_ended(self) -> None:
        self._steps.append(self._used)
        self._used = []

    def resized(self, slots: int) -> None:
        self._catch_up()
        self._policy.resized(slots)

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        self._catch_up()
        return self._policy.victim(blocked, incoming)

    def _catch_up(self) -> None:
        for key, is_there in self._moved.items():
            if is_there is not (key in self._known):
                (self._policy.inserted if is_there else self._policy.removed)(key)
                (self._known.add if is_there else self._known.discard)(key)
        self._moved.clear()
        for step in self._steps:
            self._tell(step)
            self._policy.step_ended()
        self._steps.clear()
        self._tell(self._used)
        self._used.clear()

    def _tell(self, used: list[ExpertKey]) -> None:
        for key in used:
            self._policy.used(key)
