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


def list_likely_by_numpy(now: np.ndarray, upcoming: np.ndarray, reach: int, least: float, places: np.ndarray) -> int:
    """Fills int64 `places` with layer * experts + expert of what is at least `least` likely; returns how many.

    Last comes what is needed soonest: `now` by layer, before that the first `reach` layers of `upcoming`.
    """
    soon = np.flatnonzero(now.reshape(-1) >= least)[::-1]
    then = np.flatnonzero(upcoming[:reach].reshape(-1) >= least)[::-1]
    places[: len(then)] = then
    places[len(then) : len(then) + len(soon)] = soon
    return len(then) + len(soon)


if kernels.available():
    from engine.model.kernels.expectation import expect, list_likely
else:
    expect, list_likely = expect_by_numpy, list_likely_by_numpy
