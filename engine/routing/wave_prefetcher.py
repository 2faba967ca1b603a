"""What to load ahead in a joint pass, in the order in which the pass will come to it."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np

from engine.checkpoint.expert_key import ExpertKey
from engine.routing.cost_gate import CostGate
from engine.routing.prefetcher import Guess
from engine.routing.touching import list_due
from engine.routing.victims import Victims
from engine.routing.wave_forecast import WaveForecast

MOST_PLANNED = 64
LEAST, MARGIN = 0.75, 0.4  # less of either hastens nothing in simulations, and moves more


class WavePrefetcher:
    """Names the experts to load next, those of the nearest layer first, as long as each is worth more than what it
    evicts: of what was just computed with, nothing is needed before a whole pass is over.

    `absent` float32 [layers * experts] is 0 where an expert has a slot; its owner keeps it up to date. `least` is the
    probability of use from which a guess is worth its bytes, `margin` by how much its value must exceed the victim's.
    Whether it pays is asked for each number of rows apart. Not thread-safe: its owner calls it under a lock.
    """

    def __init__(
        self,
        forecast: WaveForecast,
        absent: np.ndarray,
        gated: bool = True,
        least: float = LEAST,
        margin: float = MARGIN,
    ) -> None:
        self._forecast, self._absent, self._gated = forecast, absent, gated
        self._least, self._margin = least, margin
        self._value = forecast.value.reshape(-1)
        self._due = forecast.due.reshape(-1)
        self._places = np.zeros(MOST_PLANNED, np.int64)  # scratch
        self._plan: list[int] = []  # flat places, the first to load last
        layers, experts = forecast.due.shape
        self._keys = [ExpertKey(*divmod(place, experts)) for place in range(layers * experts)]
        self._victims = Victims(self._value, absent, self._keys)
        self._outdated = False  # plan and victims: they are listed anew when somebody asks
        self._unreadable: set[ExpertKey] = set()  # in this pass
        self._gates: dict[int, CostGate] = {}
        self._gate: CostGate | None = None  # of the pass in progress
        self.in_joint_pass = False
        """Whether a joint pass was the last step to begin."""

    @property
    def on(self) -> bool:
        """Whether the pass in progress, or else the next one, is foreseen."""
        return self._gate is None or self._gate.on

    def begin_pass(self, expected: np.ndarray | None = None) -> None:
        """A joint pass begins; `expected` as WaveForecast takes it."""
        self._unreadable.clear()
        rows = len(expected) if expected is not None else self._forecast.rows
        self._gate = self._gates.setdefault(rows, CostGate()) if self._gated and rows else None
        self._forecast.begin_pass(expected)
        self.in_joint_pass, self._outdated = True, self.on

    def observed(self, layer: int, hidden: Any, experts: np.ndarray, weights: np.ndarray) -> bool:
        """The real routing of `layer`; hidden, experts [rows, top k] as WaveForecast takes them. True when there may be
        more to name than before.
        """
        self._forecast.observed(layer, hidden if self.on else None, experts)
        self._outdated = self.on
        return self.on

    def end_step(self, seconds: float, waited: float) -> None:
        """The pass is done, after `seconds`, `waited` of them for transfers; plans for the next pass stay."""
        if self._gate is not None and self._gates.get(self._forecast.rows) is self._gate:
            self._gate.step_ended(seconds, waited)
        if not self.on:
            self.pause()

    def other_step(self) -> None:
        """A step that is no joint pass begins."""
        self.in_joint_pass = False
        self.pause()

    def pause(self) -> None:
        """Names nothing until the next pass."""
        self._outdated = False
        self._plan.clear()

    def next(self, free_slot: bool, blocked: Container[ExpertKey] = ()) -> Guess | None:
        """What to load next: an expert without a slot that is worth its victim, which is none of `blocked`.

        None: nothing is, or nobody can leave.
        """
        if self._outdated:
            self._replan()
        while self._plan:
            place = self._plan[-1]
            key = self._keys[place]
            if self._absent[place] and key not in self._unreadable and self._due[place] >= self._least:
                victim = -1 if free_slot else self._victims.weakest(blocked)
                if victim is None:
                    return None
                if victim < 0 or self._value[place] > self._value[victim] + self._margin:
                    corrects = self._forecast.was_unlikely(key, self._least)
                    return Guess(key, self._keys[victim] if victim >= 0 else None, corrects)
            self._plan.pop()
        return None

    def may_correct(self) -> bool:
        """Whether `next` may name a correction: every plan of a joint pass may hold some."""
        return self._outdated or bool(self._plan)

    def is_wrong(self, key: ExpertKey) -> bool:
        """True when a queued guess is not likely any more."""
        return bool(self._forecast.due[key] < self._least / 2)

    def failed(self, key: ExpertKey) -> None:
        """`key` could not be read: it is not named again in this pass."""
        self._unreadable.add(key)

    def _replan(self) -> None:
        self._outdated = False
        scratch, first = self._places, self._forecast.next_layer
        count = list_due(self._forecast.due, self._absent, first, np.float32(self._least), scratch)
        self._plan = scratch[:count].tolist()
        self._victims.outdated()
