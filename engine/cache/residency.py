"""Which expert is in which slot. Plain Python: no bytes, no threads, so it is the same in replays."""

from __future__ import annotations

from collections.abc import Container, Iterator

from engine.cache.policies import EvictionPolicy
from engine.checkpoint.expert_key import ExpertKey


class Residency:
    """Slot accounting: every slot is free, filling or resident; a pinned or filling one is never evicted.

    Slots are opaque ids. `reserve` -> (`publish` | `abort`) is the life of a load; `pin`/`unpin` nest.

    `blocked`: who must not be evicted; `blocked_for_guesses`: nor for a load on a guess, which may happen while experts
    of guarded layers are computed with that nobody pins.
    """

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self._free: list[int] = []
        self._slot_of: dict[ExpertKey, int] = {}
        self._filling: set[ExpertKey] = set()
        self._pins: dict[ExpertKey, int] = {}
        self.blocked: Container[ExpertKey] = _Blocked(self._pins, self._filling)  # in use or being filled
        self.blocked_for_guesses = _BlockedOrGuarded(self.blocked)
        self.evicted: list[ExpertKey] = []  # drained by the owner, which knows what an eviction costs

    def __len__(self) -> int:
        return len(self._slot_of)

    def __iter__(self) -> Iterator[ExpertKey]:
        return iter(self._slot_of)

    def guard(self, layers: range) -> None:
        """From now on these layers are guarded, and no others."""
        self.blocked_for_guesses.guarded = layers

    @property
    def slots(self) -> int:
        return len(self._free) + len(self._slot_of)

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def slot(self, key: ExpertKey) -> int | None:
        """The slot that holds or is being filled with `key`."""
        return self._slot_of.get(key)

    def is_resident(self, key: ExpertKey) -> bool:
        """True when all bytes of `key` are there."""
        return key in self._slot_of and key not in self._filling

    def is_filling(self, key: ExpertKey) -> bool:
        return key in self._filling

    def is_pinned(self, key: ExpertKey) -> bool:
        return key in self._pins

    def add_slots(self, slots: list[int]) -> None:
        self._free.extend(slots)
        self.policy.resized(self.slots)

    def reserve(self, key: ExpertKey, victim: ExpertKey | None = None) -> int | None:
        """A slot for `key`, now filling: `victim`'s, else a free one, else the policy's choice. None: all blocked."""
        assert key not in self._slot_of, f"{key} is already in a slot"
        if victim is None and not self._free:
            victim = self.policy.victim(self.blocked, key)
            if victim is None:
                return None
        if victim is not None:
            self.evict(victim)
        slot = self._free.pop()
        self._slot_of[key] = slot
        self._filling.add(key)
        self.policy.inserted(key)
        return slot

    def publish(self, key: ExpertKey) -> None:
        """All bytes of `key` have arrived."""
        self._filling.remove(key)

    def abort(self, key: ExpertKey) -> None:
        """The load of `key` failed or was cancelled; its slot is free again."""
        self._filling.remove(key)
        self._remove(key)

    def evict(self, key: ExpertKey) -> None:
        assert key not in self.blocked, f"{key} is in use or being filled"
        self._remove(key)
        self.evicted.append(key)

    def pin(self, key: ExpertKey) -> None:
        self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: ExpertKey) -> None:
        count = self._pins[key] - 1
        if count:
            self._pins[key] = count
        else:
            del self._pins[key]

    def drop_slots(self, target: int) -> list[int]:
        """Shrinks to `target` slots, evicting as the policy says. Returns the slots given up.

        Stops early when everything left is pinned or filling.
        """
        dropped: list[int] = []
        while self.slots > target:
            if not self._free:
                victim = self.policy.victim(self.blocked, None)
                if victim is None:
                    break
                self.evict(victim)
            dropped.append(self._free.pop())
        self.policy.resized(self.slots)
        return dropped

    def check(self) -> None:
        """Raises AssertionError when an invariant is broken (for tests)."""
        held = list(self._slot_of.values()) + self._free
        assert len(held) == len(set(held)), "one slot has two owners"
        assert self._filling <= self._slot_of.keys(), "a filling expert has no slot"
        assert all(count > 0 for count in self._pins.values()), "a pin count is not positive"

    def _remove(self, key: ExpertKey) -> None:
        self._free.append(self._slot_of.pop(key))
        self.policy.removed(key)


class _Blocked:
    """What must not be evicted, as a live view (a set copy per miss would cost more than the eviction)."""

    def __init__(self, pins: dict[ExpertKey, int], filling: set[ExpertKey]) -> None:
        self._pins = pins
        self._filling = filling

    def __contains__(self, key: object) -> bool:
        return key in self._pins or key in self._filling


class _BlockedOrGuarded:
    def __init__(self, blocked: Container[ExpertKey]) -> None:
        self._blocked = blocked
        self.guarded = range(0)

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, tuple)
        return key[0] in self.guarded or key in self._blocked
