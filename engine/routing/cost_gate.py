"""Whether prediction pays now: the engine compares itself with prediction off on a small share of its tokens.

Predicting costs computing time and moves bytes on guesses. Where next to nothing is waited for, or the guesses do not
hasten what is waited for, it loses: then it stays off, but for a few tokens now and then that ask again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_SPELL = 24  # tokens until the first comparison
SPELL = 96  # tokens in the better mode between two comparisons
PROBE = 12  # tokens in the other mode
SETTLING = 4  # of them do not count: the cache still holds what the mode before has chosen
LEAST_WAITING = 0.04  # share of a plain token's time spent waiting, below which nothing can be won
MEMORY = 0.75  # weight of earlier comparisons beside a new one


@dataclass
class _Mean:
    seconds: float = 0.0
    waited: float = 0.0
    tokens: int = 0

    def add(self, seconds: float, waited: float) -> None:
        self.seconds += seconds
        self.waited += waited
        self.tokens += 1

    def per_token(self) -> float:
        return self.seconds / self.tokens


class CostGate:
    """`on` says whether the next token is decoded with prediction. Plain numbers, no clock of its own.

    A comparison: a probe in the other mode against as many tokens right before it, so that both meet the same text
    and the same noise. `gain` is the speed with prediction over the speed without, minus one, decayed over
    comparisons; None before the first.
    """

    def __init__(self) -> None:
        self.on = True
        self.gain: float | None = None
        self._better = True
        self._left = FIRST_SPELL
        self._before: list[tuple[float, float]] = []
        self._probe = _Mean()

    @property
    def pays(self) -> bool | None:
        """What the comparisons say; None before the first."""
        return None if self.gain is None else self._better

    @property
    def is_probing(self) -> bool:
        """True while the mode is only being compared with."""
        return self.on is not self._better

    def step_ended(self, seconds: float, waited: float) -> None:
        """A token in the present mode took `seconds`, of which it `waited` for transfers."""
        self._left -= 1
        if self.is_probing:
            if self._left < PROBE - SETTLING:
                self._probe.add(seconds, waited)
        else:
            self._before = [*self._before[-(PROBE - SETTLING - 1) :], (seconds, waited)]
        if self._left > 0:
            return
        if self.is_probing:
            self._compare()
            self.on, self._left = self._better, SPELL
        else:
            self.on, self._left = not self._better, PROBE
            self._probe = _Mean()

    def _compare(self) -> None:
        before = _Mean()
        for seconds, waited in self._before:
            before.add(seconds, waited)
        with_it, without = (self._probe, before) if self.on else (before, self._probe)
        found = math.log(without.per_token() / with_it.per_token())
        known = None if self.gain is None else math.log1p(self.gain)
        mixed = found if known is None else MEMORY * known + (1 - MEMORY) * found
        self.gain = math.expm1(mixed)
        self._better = self.gain > 0 and without.waited >= LEAST_WAITING * without.seconds
