"""The shape of every benchmark's result: machine, command, runs, ratios; medians over repeats."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from engine.cache.policy_choice import PLAIN_POLICIES
from engine.hardware.machine import survey_machine


def make_report(runs: Sequence[Mapping[str, Any]], ratios: Mapping[str, float | None], **facts: Any) -> dict[str, Any]:
    """One JSON object: what was measured on which machine by which command, `facts` beside it."""
    return {
        "machine": survey_machine().to_dict(),
        "command": sys.argv,
        **facts,
        "runs": list(runs),
        "ratios": dict(ratios),
    }


def median_run(repeats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One run from several of the same contender: the median of what is a number, the first of what is not.

    Peaks (`peak_*`) are maxima. `repeats` says how many there were, `tokens_per_second_all` what each gave.
    """
    if not repeats:
        raise ValueError("No repeats to take a median of.")
    merged = {name: _merge(name, [run.get(name) for run in repeats]) for name in repeats[0]}
    speeds = [run["tokens_per_second"] for run in repeats if "tokens_per_second" in run]
    return {**merged, "repeats": len(repeats), "tokens_per_second_all": speeds}


def fastest_plain(runs: Iterable[Mapping[str, Any]], budget: str, link: str) -> Mapping[str, Any] | None:
    """Of the runs with a plain policy at that budget and link, the one with most tokens per second."""
    plain = [run for run in runs if run["policy"] in PLAIN_POLICIES and (run["budget"], run["link"]) == (budget, link)]
    return max(plain, key=lambda run: run["tokens_per_second"], default=None)


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Quotient, or None where one of the two was not measured."""
    return numerator / denominator if numerator and denominator else None


def median_ratio(numerators: Iterable[float], denominators: Iterable[float]) -> float | None:
    """Median of the quotients of measurements taken in turn: noise that hits both of a pair cancels."""
    quotients = [first / second for first, second in zip(numerators, denominators, strict=True) if second]
    return median(quotients) if quotients else None


def _merge(name: str, values: Sequence[Any]) -> Any:
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return values[0]
    merged = max(values) if name.startswith("peak_") else median(values)
    return int(merged) if all(isinstance(value, int) for value in values) else merged
