"""Which grouping is used where none is asked for: whichever reads a token sooner, measured in turns.

A grouping that moves fewer bytes may still lose: smaller passes read the dense weights more often, and nothing is won
where everything is there or the link is quick. So the groupings are compared on the text at hand, those that lose for a
small share of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

PROBE_TOKENS = 5  # of each waiting chat, in a grouping that is being compared
SETTLING_TOKENS = 2  # of them do not count: the cache still holds what the grouping before has chosen
MEMORY = 0.7  # of what was measured before, at each new measurement
EXPLORING = 1 / 48  # of the time may be lost by measuring those that are slower


class MeasuredChoice:
    """Compares seconds of a token, for about so many waiting chats apart. Plain numbers, no clock of its own."""

    def __init__(self, names: Sequence[str]) -> None:
        """The first of `names` is used until something is measured."""
        self._names = tuple(names)
        self._seconds: dict[tuple[int, str], float] = {}
        self._name, self._chats = self._names[0], 0
        self._left = 0  # tokens of this turn
        self._counted = (0, 0.0)  # tokens and seconds of it that count
        self._saved_up = 0.0  # seconds that may be lost

    def name(self, waiting: int) -> str:
        """The grouping of the next pass, with so many tokens waiting."""
        chats = _about(waiting)
        if self._left <= 0 or chats != self._chats:
            self._chats, self._counted = chats, (0, 0.0)
            self._name, self._left = self._next(waiting), PROBE_TOKENS * waiting
        return self._name

    def took(self, waiting: int, tokens: int, seconds: float) -> None:
        """The pass read so many tokens in so long."""
        self._left -= tokens
        self._saved_up += EXPLORING * seconds
        if self._left < (PROBE_TOKENS - SETTLING_TOKENS) * waiting:
            self._counted = self._counted[0] + tokens, self._counted[1] + seconds
        if self._left <= 0 and self._counted[0]:
            key, found = (self._chats, self._name), self._counted[1] / self._counted[0]
            self._seconds[key] = MEMORY * self._seconds.get(key, found) + (1 - MEMORY) * found

    def seconds_per_token(self, waiting: int) -> dict[str, float]:
        """What was measured with about so many waiting."""
        return {name: self._seconds[key] for name in self._names if (key := (_about(waiting), name)) in self._seconds}

    def _next(self, waiting: int) -> str:
        known = self.seconds_per_token(waiting)
        for name in self._names:
            if name not in known:
                return name
        best, *others = sorted(known, key=lambda name: known[name])
        for name in others if self._name == best else ():  # two comparisons never follow each other
            if (known[name] - known[best]) * PROBE_TOKENS * waiting <= self._saved_up:
                self._saved_up = 0.0
                return name
        return best


def _about(waiting: int) -> int:
    return waiting.bit_length()
