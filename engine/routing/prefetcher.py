"""What to load on a guess, and whether the guess is worth its bytes. Plain Python on numbers."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.checkpoint.expert_key import ExpertKey
from engine.routing.cost_gate import CostGate
from engine.routing.expectation import list_likely
from engine.routing.forecast import Forecast
from engine.routing.victims import Victims


class Guess(NamedTuple):
    """An expert to load on a guess. `victim`: who has to leave for it, None where nobody does; `corrects`: whether it
    mends what was predicted before the step.
    """

    key: ExpertKey
    victim: ExpertKey | None
    corrects: bool


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
        self._least, self._margin = least, margin
        layers, self._experts = forecast.now.shape
        self._urgency = np.exp(-np.arange(2 * layers, dtype=np.float32) / layers).reshape(2, layers)
        pauses = [*np.flatnonzero(forecast.pauses).tolist(), layers]
        self._until_pause = [range(layer, next(pause for pause in pauses if pause > layer)) for layer in range(layers)]
        self._places = np.zeros(2 * layers * self._experts, np.int64)  # scratch
        self._plan: list[int] = []  # flat places, the first to load last
        self._outdated = False  # plan and victims: they are listed anew when somebody asks
        self._value = forecast.value.reshape(-1)
        self._now, self._next = forecast.now.reshape(-1), forecast.next.reshape(-1)
        self._keys = [ExpertKey(*divmod(place, self._experts)) for place in range(layers * self._experts)]
        self._victims = Victims(self._value, absent, self._keys)
        self._corrects: bool | None = None  # whether the plan may hold corrections; None: not asked yet
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
            self._outdated = True

    @property
    def pauses(self) -> np.ndarray:
        """bool [layers]: whose routing says more than itself."""
        return self._forecast.pauses

    @property
    def until_pause(self) -> Sequence[range]:
        """For each layer: it and those after it, up to the next one that pauses."""
        return self._until_pause

    def passed(self, first: int, experts: np.ndarray, weights: np.ndarray) -> None:
        """The real routing of layers `first`, ..., as Forecast takes it."""
        if self.on:
            self._forecast.passed(first, experts, weights)

    def observed(self, layer: int, hidden: Any, experts: np.ndarray, weights: np.ndarray) -> bool:
        """The real routing of `layer`; hidden, experts, weights as Forecast takes them. True when there may be more to
        name than before.
        """
        says_more = self.on and self._forecast.observed(layer, hidden, experts, weights)
        self._outdated = self._outdated or says_more
        return says_more

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
        self._outdated = False
        self._plan.clear()

    def next(self, free_slot: bool, blocked: Container[ExpertKey] = ()) -> Guess | None:
        """What to load next: an expert without a slot that is worth its victim, which is none of `blocked`.

        None: nothing is, or nobody can leave.
        """
        if self._outdated:
            self._replan()
        plan, value = self._plan, self._value.item  # `item`: a number of an array in a fraction of the time
        while plan:
            place = plan[-1]
            key = self._keys[place]
            if self._absent.item(place) and key not in self._unreadable and self._chance(place) >= self._least:
                victim = -1 if free_slot else self._victims.weakest(blocked)
                if victim is None:
                    return None
                if victim < 0 or value(place) > value(victim) + self._margin:
                    corrects = self._forecast.is_correction(key, self._least)
                    return Guess(key, self._keys[victim] if victim >= 0 else None, corrects)
            plan.pop()
        return None

    def may_correct(self) -> bool:
        """False when nothing that `next` names would be a correction: then it need not be asked for one."""
        if self._outdated:
            self._replan()
        if self._corrects is None:
            self._corrects = bool(self._plan) and self._forecast.any_correction(self._absent, np.float32(self._least))
        return self._corrects

    def is_wrong(self, key: ExpertKey) -> bool:
        """True when a queued guess is not likely any more."""
        return self._chance(key.layer * self._experts + key.expert) < self._least / 2

    def failed(self, key: ExpertKey) -> None:
        """`key` could not be read: it is not named again in this step."""
        self._unreadable.add(key)

    def _replan(self) -> None:
        """What is likely, in this token's layers to come and in the next token's, and who is least worth keeping."""
        forecast, places = self._forecast, self._places
        self._outdated = False
        count = list_likely(forecast.now, forecast.next, self._absent, self._urgency, np.float32(self._least), places)
        self._plan = places[:count].tolist()
        self._victims.outdated()
        self._corrects = None

    def _chance(self, place: int) -> float:
        """Forecast.chance."""
        return max(self._now.item(place), self._next.item(place))
