"""What a forecast is worth, and what is likely in it; compiled where kernels can run, these are most of its cost."""

from __future__ import annotations

import numpy as np

from engine.model import kernels


def expect_by_numpy(now: np.ndarray, later: np.ndarray, phase: np.ndarray, value: np.ndarray) -> None:
    """value = phase * (now + (1 - now) * later), all float32 [layers, experts] but phase [layers]."""
    np.subtract(1, now, out=value)
    value *= later
    value += now
    value *= phase[:, None]


def list_likely_by_numpy(
    now: np.ndarray, upcoming: np.ndarray, absent: np.ndarray, urgency: np.ndarray, least: float, places: np.ndarray
) -> int:
    """Fills int64 `places` with layer * experts + expert of what is at least `least` likely and has no slot; returns
    how many.

    absent: float32 [layers * experts], 0 where there is a slot. Last comes what has the most probability times
    urgency; float32 [2, layers], of layers in `now` and `upcoming`.
    """
    chances = np.stack([now, upcoming], axis=-1)
    likely = np.flatnonzero((chances.reshape(-1) >= least) & np.repeat(absent != 0, 2))
    scores = (chances * urgency.T[:, None]).reshape(-1)[likely]
    places[: len(likely)] = likely[np.argsort(scores, kind="stable")] // 2
    return len(likely)


def any_turned_likely_by_numpy(now: np.ndarray, before: np.ndarray, absent: np.ndarray, least: float) -> bool:
    """Whether an expert without a slot is at least `least` likely now and was not before; float32 as above."""
    turned = (now >= least) & (before < least)
    return bool((turned.reshape(-1) & (absent != 0)).any())


def least_valued_by_numpy(value: np.ndarray, absent: np.ndarray) -> int:
    """Where the smallest value is whose `absent` is 0, -1 where there is none; both float32 [places]."""
    there = np.where(absent == 0, value, np.inf)
    place = int(there.argmin())
    return place if there[place] != np.inf else -1


def list_least_valued_by_numpy(value: np.ndarray, absent: np.ndarray, places: np.ndarray) -> int:
    """Fills int64 `places` with those of the smallest values whose `absent` is 0, the smallest last; returns how many.

    value, absent: float32 [layers * experts].
    """
    there = np.flatnonzero(absent == 0)
    least = there[np.argsort(value[there], kind="stable")][: len(places)]
    places[: len(least)] = least[::-1]
    return len(least)


if kernels.available():
    from engine.model.kernels.expectation import (
        any_turned_likely,
        expect,
        least_valued,
        list_least_valued,
        list_likely,
    )
else:
    any_turned_likely = any_turned_likely_by_numpy
    expect, least_valued = expect_by_numpy, least_valued_by_numpy
    list_least_valued, list_likely = list_least_valued_by_numpy, list_likely_by_numpy
