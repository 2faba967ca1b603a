"""Whether a token of each of several chats is read in one pass or chat after chat: whichever is quicker here.

One pass reads weights once, and every expert that several chats need; the decoding fast path reads one chat's token in
much less time than one pass takes. What wins depends on the model, the number of chats and what has to be moved.
"""

from __future__ import annotations

MEMORY = 0.8  # of what was measured before, at each new measurement
EXPLORING = 1 / 32  # of the time may go into measuring the slower way


class JointChoice:
    """Compares seconds of a step, for each number of chats apart. Both ways are measured first."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, bool], float] = {}
        self._saved_up = 0.0  # seconds that may be spent on measuring

    def joint(self, chats: int) -> bool:
        """Whether to read the next step's tokens in one pass."""
        for way in (True, False):
            if (chats, way) not in self._seconds:
                return way
        quicker = self._seconds[chats, True] < self._seconds[chats, False]
        lost = abs(self._seconds[chats, True] - self._seconds[chats, False])
        if lost > self._saved_up:
            return quicker
        self._saved_up = 0.0
        return not quicker

    def took(self, chats: int, joint: bool, seconds: float) -> None:
        """A step in one way took so long."""
        known = self._seconds.get((chats, joint), seconds)
        self._seconds[chats, joint] = MEMORY * known + (1 - MEMORY) * seconds
        self._saved_up += EXPLORING * seconds


class Always(JointChoice):
    """One way, whatever is quicker: to measure it."""

    def __init__(self, joint: bool) -> None:
        super().__init__()
        self._joint = joint

    def joint(self, chats: int) -> bool:
        return self._joint
