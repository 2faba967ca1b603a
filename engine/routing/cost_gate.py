"""Whether prediction pays now: the engine compares itself with prediction off on a small share of its tokens.

Predicting costs computing time and moves bytes on guesses. Where next to nothing is waited for, or the guesses do not
hasten what is waited for, it loses: then it stays off, but for a few tokens now and then that ask again.
"""

from __future__ import annotations

import math
from collections import deque

FIRST_SPELL = 24  # tokens until the first comparison
SPELL, LONGEST_SPELL = 96, 384  # tokens in the better mode between two comparisons, more while they agree
CLEAR_GAIN = 0.15  # either way: then an agreeing comparison is good for the longest spell at once
PROBE = 12  # tokens in the other mode
SETTLING = 4  # of them do not count: the cache still holds what the mode before has chosen
LEAST_WAITING = 0.04  # share of a plain token's time spent waiting, below which nothing can be won
EXPECTED_WAITING = 0.65  # of a plain token's waiting: what is left with prediction, as long as little was measured
MOST_SURPRISE = 1.0  # a comparison counts no more than a factor of e: a new topic waits longer in any mode
MEMORY = 0.7  # weight of earlier comparisons beside a new one


class CostGate:
    """`on` says whether the next token is decoded with prediction. Plain numbers, no clock of its own.

    A comparison: a probe in the other mode against as many tokens right before it, so that both meet the same text
    and the same noise. What a token computes is nearly the same from one to the next, what it waits is not: so the
    two are compared apart, and of the waiting one begins with what is known of prediction elsewhere. `gain` is the
    speed with prediction over the speed without, minus one; None before the first comparison.
    """

    def __init__(self) -> None:
        self.on = True
        self.gain: float | None = None
        self._better = True
        self._spell, self._left = SPELL, FIRST_SPELL
        self._tokens: deque[tuple[float, float]] = deque(maxlen=PROBE - SETTLING)  # seconds computed, waited
        self._before: tuple[float, float] = (0.0, 0.0)
        self._computed: dict[bool, float] = {}  # seconds of a token, by mode
        self._plain_waited: float | None = None
        self._left_waiting = math.log(EXPECTED_WAITING)

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
        self._tokens.append((seconds - waited, waited))
        self._left -= 1
        if self._left > 0:
            return
        if self.is_probing:
            self._compare()
            self.on, self._left = self._better, self._spell
        elif self._has_nothing_to_win():
            self._left = SPELL
        else:
            self._before = self._mean()
            self.on, self._left = not self._better, PROBE
        self._tokens.clear()

    def _has_nothing_to_win(self) -> bool:
        """Prediction is off and next to nothing is waited for: asking again would only cost."""
        computed, waited = self._mean()
        return not self.on and waited < LEAST_WAITING * (computed + waited)

    def _mean(self) -> tuple[float, float]:
        computed, waited = (sum(column) / len(self._tokens) for column in zip(*self._tokens, strict=True))
        return computed, waited

    def _compare(self) -> None:
        with_it, without = (self._mean(), self._before) if self.on else (self._before, self._mean())
        for mode, (computed, _) in ((True, with_it), (False, without)):
            self._computed[mode] = _mixed(self._computed.get(mode), computed)
        self._plain_waited = _mixed(self._plain_waited, without[1])
        least = 0.01 * sum(without)  # so that where nobody waits neither is infinitely better
        surprise = math.log((with_it[1] + least) / (without[1] + least))
        self._left_waiting = _mixed(self._left_waiting, min(max(surprise, -MOST_SURPRISE), MOST_SURPRISE))
        plain = self._computed[False] + self._plain_waited
        self.gain = plain / (self._computed[True] + math.exp(self._left_waiting) * self._plain_waited) - 1
        self._better = self.gain > 0 and self._plain_waited >= LEAST_WAITING * plain
        agrees = (sum(with_it) < sum(without)) is self._better
        longer = LONGEST_SPELL if abs(self.gain) >= CLEAR_GAIN else min(2 * self._spell, LONGEST_SPELL)
        self._spell = longer if agrees else SPELL


def _mixed(known: float | None, found: float) -> float:
    return found if known is None else MEMORY * known + (1 - MEMORY) * found
