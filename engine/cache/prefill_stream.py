"""Which slots a prefill may use: nearly every expert passes through, few should stay.

A prefill is a cyclic scan over all experts. Left to an eviction policy it would replace the whole cache by the last
layers' experts. So each layer keeps only its share of the free slots (its most used experts first), everything else
is streamed through a bounded number of slots that are recycled as soon as they were read.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from engine.cache.residency import Residency
from engine.checkpoint.expert_key import ExpertKey


class PrefillStream:
    """Slot choice for loads during prefill, over the same `Residency` that decoding uses."""

    def __init__(self, residency: Residency, layers: int, experts_per_layer: int) -> None:
        self._residency = residency
        self._layers = layers
        self._experts_per_layer = experts_per_layer
        self._streamed: set[ExpertKey] = set()
        self._consumed: OrderedDict[ExpertKey, None] = OrderedDict()
        self._kept: Counter[int] = Counter()

    def begin(self) -> None:
        """A prefill starts: forget the last one's marks, count what each layer has."""
        self._streamed.clear()
        self._consumed.clear()
        self._kept = Counter(key.layer for key in self._residency)

    def reserve(self, key: ExpertKey, patient: bool) -> int | None:
        """A slot for `key`. None means: wait until a streamed expert has been read (`patient`) or all are blocked."""
        if self._residency.free_slots and self._kept[key.layer] < self._share:
            self._kept[key.layer] += 1
            return self._residency.reserve(key)
        slot = self._reserve_streamed(key, patient)
        if slot is not None:
            self._streamed.add(key)
        return slot

    def consumed(self, keys: Iterable[ExpertKey]) -> None:
        """These experts have been computed with: a streamed one may now make room."""
        for key in keys:
            if key in self._streamed:
                self._consumed[key] = None

    def skipped(self, layer: int, needed: set[ExpertKey]) -> None:
        """`layer` is computing: what was read ahead for it or before and is not needed may make room."""
        self.consumed([key for key in self._streamed if key.layer <= layer and key not in needed])

    def evicted(self, key: ExpertKey) -> None:
        if key in self._streamed:
            self._streamed.discard(key)
            self._consumed.pop(key, None)
        elif self._kept[key.layer]:
            self._kept[key.layer] -= 1

    @property
    def _share(self) -> int:
        return self._residency.slots // self._layers

    @property
    def _quota(self) -> int:
        """Slots that streaming may take: two layers' worth (one computing, one arriving), at most a third."""
        return max(2, min(2 * self._experts_per_layer, self._residency.slots // 3))

    def _reserve_streamed(self, key: ExpertKey, patient: bool) -> int | None:
        if len(self._streamed) >= self._quota:
            for candidate in self._consumed:
                if self._residency.is_resident(candidate) and not self._residency.is_pinned(candidate):
                    return self._residency.reserve(key, victim=candidate)
            if patient:
                return None
        return self._residency.reserve(key)
