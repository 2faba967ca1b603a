"""The what-if curve as the panel draws it: points, marks and words."""

from __future__ import annotations

from typing import Any

from app.ui.plan_view import Plan, percent_resident
from app.what_if import WhatIf

MARKS_APART = 12  # percent: nearer, two marks share their words


def what_if_data(curve: WhatIf | None, plan: Plan, auto_percent: float | None) -> dict[str, Any] | None:
    """None before there is a curve. Heights are shares of the panel: hits as they are, speed of its greatest."""
    if curve is None:
        return None
    now = percent_resident(plan)
    fastest = max(curve.tokens_per_second, default=0.0)
    return {
        "percent": list(curve.percent),
        "hit": [round(rate, 3) for rate in curve.hit_rate],
        "speed": [round(speed / fastest, 3) for speed in curve.tokens_per_second],
        "marks": _merged([(now, "now"), (curve.enough_percent, "no gain beyond"), (auto_percent, "auto")]),
        "hit_now": f"{100 * _at(curve, curve.hit_rate, now):.0f} % now",
        "speed_now": f"{_at(curve, curve.tokens_per_second, now):.1f} of {fastest:.1f} tokens/s" if fastest else "",
        "caption": _caption(curve),
    }


def _caption(curve: WhatIf) -> str:
    said = f"Estimated for the plain cache from the last {curve.tokens} tokens; drawn anew after each answer."
    if not curve.tokens_per_second:
        said += " Speed appears as soon as something was waited for."
    return said


def _at(curve: WhatIf, values: tuple[float, ...], percent: float) -> float:
    nearest = min(range(len(curve.percent)), key=lambda i: abs(curve.percent[i] - percent))
    return values[nearest]


def _merged(marks: list[tuple[float | None, str]]) -> list[dict[str, Any]]:
    """Marks from left to right; those that would overlap become one."""
    found: list[dict[str, Any]] = []
    for percent, label in sorted((mark for mark in marks if mark[0] is not None), key=lambda mark: mark[0] or 0.0):
        if found and percent is not None and percent - found[-1]["percent"] < MARKS_APART:
            found[-1]["label"] += f", {label}"
        else:
            found.append({"percent": percent, "label": label})
    return found
