"""What to load on a guess, and whether the guess is worth its bytes. Plain Python on numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.checkpoint.expert_key import ExpertKey
from engine.routing.cost_gate import CostGate
from engine.routing.expectation import list_likely
from engine.routing.forecast import Forecast


class Prefetcher:
    """Names the experts to load next, the likeliest and soonest first, as long as each is worth more than what it
    evicts.

    Where the link is the bottleneck, what counts is that no byte is moved in vain; where it is not, that bytes are
    there in time. So a guess counts its probability, less by a factor of e for each token until its use: in
    simulations this was faster than the order of use at both speeds of a link that were tried.

    `absent` float32 [layers * experts] is 0 where an expert has a slot; its owner keeps it up to date. `least` is the
    probability of use from which a guess is worth its bytes, `margin` by how much its value must exceed the victim's.
    Not thread-safe: its owner calls it under a lock.
    """

    def __init__(
        self,
        forecast: Forecast,
        absent: np.ndarray,
        gate: CostGate | None = None,
        least: float = 0.35,
        margin: float = 0.1,
    ) -> None:
        self._forecast, self._absent, self._gate = forecast, absent, gate
        self._least, self._margin = np.float32(least), margin
        layers, self._experts = forecast.now.shape
        self._urgency = np.exp(-np.arange(2 * layers, dtype=np.float32) / layers).reshape(2, layers)
        self._plan = np.zeros(2 * layers * self._experts, np.int64)  # flat places, the first to load last
        self._left = 0  # so many of the plan
        self._unreadable: set[ExpertKey] = set()  # in this step

    @property
    def on(self) -> bool:
        """False while prediction does not pay: nothing is predicted and nothing loaded on a guess."""
        return self._gate is None or self._gate.on

    def predict(self, token_id: int) -> None:
        """The only method that may be called without the lock: most of the time goes here."""
        if self.on:
            self._forecast.predict(token_id)

    def begin_step(self) -> None:
        """The token that was predicted begins; nothing is computed."""
        self._unreadable.clear()
        if self.on:
            self._forecast.begin_step()
            self._replan()

    def observed(self, layer: int, hidden: Any, experts: np.ndarray, weights: np.ndarray) -> None:
        """The real routing of `layer`; hidden, experts, weights as Forecast takes them."""
        if self.on and self._forecast.observed(layer, hidden, experts, weights):
            self._replan()

    def end_step(self, seconds: float, waited: float) -> None:
        """The token is done, after `seconds`, `waited` of them for transfers; plans for the next token stay."""
        if self.on:
            self._forecast.end_step()
        if self._gate is not None:
            self._gate.step_ended(seconds, waited)
            if not self._gate.on:
                self.pause()

    def pause(self) -> None:
        """Names nothing until the next step."""
        self._left = 0

    def next(self) -> ExpertKey | None:
        """The next expert to load, one without a slot. None: nothing is likely enough."""
        while self._left:
            place = int(self._plan[self._left - 1])
            if self._absent[place]:
                key = ExpertKey(*divmod(place, self._experts))
                if key not in self._unreadable and self._forecast.chance(key) >= self._least:
                    return key
            self._left -= 1
        return None

    def is_worth(self, key: ExpertKey, victim: ExpertKey | None) -> bool:
        """True when loading `key` is worth the eviction of `victim` (None: a slot is free)."""
        value = self._forecast.value
        return victim is None or bool(value[key] > value[victim] + self._margin)

    def is_correction(self, key: ExpertKey) -> bool:
        """True when loading `key` mends what was predicted before the step."""
        return self._forecast.is_correction(key, float(self._least))

    def is_wrong(self, key: ExpertKey) -> bool:
        """True when a queued guess is not likely any more."""
        return bool(self._forecast.chance(key) < self._least / 2)

    def skip(self) -> None:
        """What `next` named is not worth it: it is not named again until the forecast changes."""
        self._left -= 1

    def failed(self, key: ExpertKey) -> None:
        """`key` could not be read: it is not named again in this step."""
        self._unreadable.add(key)

    def _replan(self) -> None:
        """What is likely, in this token's layers to come and in the next token's."""
        forecast = self._forecast
        self._left = list_likely(forecast.now, forecast.next, self._absent, self._urgency, self._least, self._plan)
