"""Which experts passes over several tokens move, with the engine's own residency and eviction; no clock."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.cache.policies import EvictionPolicy
from engine.cache.policy_choice import ADAPTIVE, PLAIN_POLICIES, make_policy
from engine.cache.residency import Residency
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import InvalidSetting
from engine.routing.shape import RoutingShape


class PassCache:
    """Counts `distinct` experts visited and `moved` ones, which were not there."""

    def __init__(self, policy: EvictionPolicy, layers: int, experts: int, slots: int) -> None:
        self._residency = Residency(policy)
        self._residency.add_slots(list(range(slots)))
        self._layers, self._experts = layers, experts
        self.distinct = self.moved = 0

    def absent(self) -> np.ndarray:
        """float32 [layers, experts], 1 where an expert is not there."""
        found = np.ones((self._layers, self._experts), np.float32)
        for key in self._residency:
            found[key] = 0
        return found

    def read(self, used: np.ndarray) -> None:
        """One pass: a layer's distinct experts at once, those that are there first; bool [layers, experts]."""
        for layer, chosen in enumerate(used):
            self._visit([ExpertKey(layer, expert) for expert in np.flatnonzero(chosen).tolist()])
        self._residency.policy.step_ended()

    def _visit(self, keys: Sequence[ExpertKey]) -> None:
        residency = self._residency
        for key in keys:
            residency.policy.used(key)
        pinned = [key for key in keys if residency.is_resident(key)]
        for key in pinned:
            residency.pin(key)
        for key in keys:
            if not residency.is_resident(key):
                self._load(key, pinned)
        for key in pinned:
            residency.unpin(key)
        self.distinct += len(keys)

    def _load(self, key: ExpertKey, pinned: list[ExpertKey]) -> None:
        if self._residency.reserve(key) is None:  # every slot is in use: those computed by now are given up
            for done in pinned:
                self._residency.unpin(done)
            pinned.clear()
            assert self._residency.reserve(key) is not None
        self._residency.publish(key)
        self._residency.pin(key)
        pinned.append(key)
        self.moved += 1


def pass_cache(policy: str, shape: RoutingShape, share: float) -> PassCache:
    """With room for that share of all experts. Raises InvalidSetting for a policy that fetches on a guess."""
    names = (*PLAIN_POLICIES, ADAPTIVE)
    if policy not in names:
        raise InvalidSetting(
            f"Recorded passes cannot be replayed with the policy {policy!r}.", f"Choose one of: {', '.join(names)}."
        )
    slots = max(round(share * shape.outputs), shape.top_k)
    return PassCache(make_policy(policy, shape.layers), shape.layers, shape.experts, slots)
