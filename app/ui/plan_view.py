"""The memory plan in words, bytes and percent. Pure functions on numbers, tested without an engine."""

from __future__ import annotations

import math
from typing import Any, Protocol

MARKS_APART = 25  # of the track: nearer, the words of two marks would overlap
KILO, MEGA, GIGA = 1e3, 1e6, 1e9


class Plan(Protocol):
    """What of `engine.MemoryPlan` is shown."""

    @property
    def near_bytes_experts(self) -> int: ...
    @property
    def near_bytes_total(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def experts_total(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def minimum_slots(self) -> int: ...
    @property
    def model_bytes_total(self) -> int: ...
    @property
    def margin_bytes(self) -> int: ...
    @property
    def memory_saving(self) -> float: ...
    @property
    def reasons(self) -> tuple[str, ...]: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...


def bytes_in_words(count: float) -> str:
    """1,234,567,890 -> "1.23 GB". Decimal units, as disks and model pages use them."""
    for unit, name in ((GIGA, "GB"), (MEGA, "MB"), (KILO, "kB")):
        if abs(count) >= unit:
            value = count / unit
            return f"{value:.0f} {name}" if value >= 100 else f"{value:.3g} {name}"
    return f"{count:.0f} B"


def percent_resident(plan: Plan) -> float:
    """Share of the experts that have a slot, 0-100."""
    return min(100.0, 100.0 * plan.slots / max(plan.experts_total, 1))


def minimum_percent(plan: Plan) -> int:
    """The smallest whole percent that is a legal budget."""
    return min(100, max(1, math.ceil(100 * plan.minimum_slots / max(plan.experts_total, 1))))


def budget_of(percent: float) -> str:
    """The slider's number as `Engine.resize` takes it."""
    return f"{percent:g}%"


def everything_fits(plan: Plan) -> bool:
    return plan.slots >= plan.experts_total


def budget_words(plan: Plan) -> str:
    """Such as "50 %: 240 of 480 experts, 0.94 GB"."""
    slots = min(plan.slots, plan.experts_total)
    share = f"{percent_resident(plan):.0f} %"
    return f"{share}: {slots} of {plan.experts_total} experts, {bytes_in_words(plan.near_bytes_experts)}"


def total_words(plan: Plan) -> str:
    """What the model takes in all, against what it would take whole."""
    return (
        f"With dense layers, context and workspace {bytes_in_words(plan.near_bytes_total)}; "
        f"the whole model is {bytes_in_words(plan.model_bytes_total)}."
    )


def invitation(plan: Plan) -> str:
    """What to try next."""
    if everything_fits(plan):
        return "Everything fits, so everything is resident. Pull the slider down and watch what less memory costs."
    return "Move it while an answer is being written: the model is not reloaded."


def marks(plan: Plan, auto_percent: float | None) -> list[dict[str, Any]]:
    """Marks under the slider: label and place (0-100) along its track, which begins at the minimum."""
    lowest = minimum_percent(plan)
    if auto_percent is None:
        return [{"label": "minimum", "place": 0}]
    place = 100 * (round(auto_percent) - lowest) / max(100 - lowest, 1)
    if place < MARKS_APART:
        return [{"label": "minimum, auto", "place": 0}]
    return [{"label": "minimum", "place": 0}, {"label": "auto", "place": round(place, 1)}]
