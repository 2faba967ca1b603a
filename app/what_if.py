"""What other budgets would give: hit rate and speed against the budget, from the session's own routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.lab.simulation.lru_curve import lru_curve
from engine.routing.traces.trace import RoutingTrace

FEWEST_TOKENS = 32
POINTS = 40
NO_GAIN = 0.98  # of the greatest speed, or of the hits: what comes beyond is not worth its memory


@dataclass(frozen=True)
class WhatIf:
    """`percent` of the experts in memory, rising; `hit_rate` there; `tokens_per_second` there, empty until something
    was missed, since only then is it known what a miss costs. `enough_percent`: more than that gains next to nothing.
    """

    percent: tuple[float, ...]
    hit_rate: tuple[float, ...]
    tokens_per_second: tuple[float, ...]
    enough_percent: float
    tokens: int


class WhatIfCurve:
    """The curve of the session so far; drawn anew after each answer, never while one is being written."""

    def __init__(self) -> None:
        self._drawn_for: tuple[int, int] | None = None
        self._drawn: WhatIf | None = None

    def of(self, engine: Any, busy: bool) -> WhatIf | None:
        """The newest curve; None before there were enough tokens."""
        stats, plan = engine.stats(), engine.plan
        state = id(engine), stats.decode_steps
        if not busy and state != self._drawn_for:
            experts = engine.snapshot().residency.shape[1]
            lowest = 100 * plan.minimum_slots / max(plan.experts_total, 1)
            self._drawn = what_if(engine.recent_routing(), stats, experts, lowest)
            self._drawn_for = state
        return self._drawn


def what_if(trace: RoutingTrace, stats: Any, experts: int, lowest_percent: float) -> WhatIf | None:
    """From recent decoding steps and EngineStats since load; None while they are too few.

    Hits are those of the default plain cache; a miss costs what it cost on average so far, and a token without any
    what it took without the waiting. Speeds are in the time of an emulated card where there is one.
    """
    if len(trace) < FEWEST_TOKENS or not stats.decode_steps:
        return None
    curve = lru_curve([trace], trace.layers, experts, per_layer=True)
    total = trace.layers * experts
    percent = np.unique(np.linspace(lowest_percent, 100, POINTS).round(1))
    # the first use of each expert is a miss in every cache, but only because the recording begins somewhere
    known = max(int(curve.hits[-1]), 1)
    hit_rate = np.array([curve.hits[round(total * share / 100)] / known for share in percent])
    speed = _speed(hit_rate, curve.activations / len(trace), stats)
    judged = hit_rate if speed is None else speed
    enough = percent[int(np.argmax(judged >= NO_GAIN * judged[-1]))]
    return WhatIf(
        tuple(percent.tolist()),
        tuple(hit_rate.tolist()),
        () if speed is None else tuple(speed.tolist()),
        float(enough),
        len(trace),
    )


def _speed(hit_rate: np.ndarray, activations_per_token: float, stats: Any) -> np.ndarray | None:
    missed = stats.misses + stats.late
    if not missed or not stats.stall_seconds:
        return None
    computing = (stats.decode_seconds - stats.stall_seconds) / stats.decode_steps
    per_miss = stats.stall_seconds / missed
    return stats.time_dilation / (computing + (1 - hit_rate) * activations_per_token * per_miss)
