"""Least-Stale eviction, to compare with: layers are computed in a circle, so what lies just behind is needed last."""

from __future__ import annotations

from collections.abc import Container

from engine.cache.policies import EvictionPolicy
from engine.checkpoint.expert_key import ExpertKey


class LeastStale(EvictionPolicy):
    """As we read SpecMD (arXiv 2602.03921), whose policy is described in words only.

    Stale is what this pass has gone by without using: it goes first, the nearest behind the present layer before all.
    Then goes what was used, again the nearest behind first; what lies ahead of the present layer goes last.
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._resident: dict[ExpertKey, None] = {}
        self._used: set[ExpertKey] = set()  # in this pass
        self._now = 0  # the layer being computed

    def inserted(self, key: ExpertKey) -> None:
        self._resident[key] = None

    def removed(self, key: ExpertKey) -> None:
        del self._resident[key]

    def used(self, key: ExpertKey) -> None:
        self._now = key.layer
        self._used.add(key)

    def step_ended(self) -> None:
        self._used.clear()

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        return min((key for key in self._resident if key not in blocked), key=self._urgency, default=None)

    def _urgency(self, key: ExpertKey) -> tuple[bool, int]:
        """Smallest for what goes first."""
        is_ahead = key.layer > self._now
        return is_ahead or key in self._used, (self._now - key.layer) % self._layers
