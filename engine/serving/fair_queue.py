"""Who is next: first come, first served within a caller, and the callers in turn."""

from __future__ import annotations

from collections import deque
from itertools import zip_longest
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Holds at most `bound` items; whoever asks for much delays others by one item at most, and leaves them room: a
    caller may have as many items here as there is room left, alone up to half of `bound`. Not thread-safe.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._of_callers: dict[str, deque[T]] = {}  # in the order of turns; none is empty

    def __len__(self) -> int:
        return sum(map(len, self._of_callers.values()))

    @property
    def is_full(self) -> bool:
        return len(self) >= self.bound

    def of(self, caller: str) -> int:
        """How many items of the caller wait."""
        return len(self._of_callers.get(caller, ()))

    def has_room(self, caller: str) -> bool:
        """Whether one more item of the caller may wait."""
        return self.of(caller) < self.bound - len(self)

    def put(self, item: T, caller: str) -> None:
        """The item waits behind the others of its caller. Ask `has_room` first."""
        assert self.has_room(caller), "the queue has no room for this caller"
        self._of_callers.setdefault(caller, deque()).append(item)

    def pop(self) -> T | None:
        """The next item; its caller's turn comes again after the others'. None: nobody waits."""
        if not self._of_callers:
            return None
        caller, items = next(iter(self._of_callers.items()))
        del self._of_callers[caller]
        item = items.popleft()
        if items:
            self._of_callers[caller] = items
        return item

    def remove(self, item: T) -> bool:
        """Takes the item out; False when it does not wait here."""
        for caller, items in self._of_callers.items():
            if item in items:
                items.remove(item)
                if not items:
                    del self._of_callers[caller]
                return True
        return False

    def in_order(self) -> list[T]:
        """Who waits, as they will be taken if nobody else comes."""
        rounds = zip_longest(*self._of_callers.values(), fillvalue=None)
        return [item for turn in rounds for item in turn if item is not None]
