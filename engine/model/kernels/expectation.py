"""What a forecast is worth, and what is likely in it: small sums that numpy would spend most of its time calling."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import kernel


@kernel
def expect(now, later, phase, value):
    """value = phase * (now + (1 - now) * later), all float32 [layers, experts] but phase [layers]."""
    for layer in range(now.shape[0]):
        for expert in range(now.shape[1]):
            p = now[layer, expert]
            value[layer, expert] = phase[layer] * (p + (np.float32(1) - p) * later[layer, expert])


@kernel
def list_likely(now, upcoming, absent, urgency, least, places):
    """Fills int64 `places` with layer * experts + expert of what is at least `least` likely and has no slot; returns
    how many.

    absent: float32 [layers * experts], 0 where there is a slot. Last comes what has the most probability times
    urgency; float32 [2, layers], of layers in `now` and `upcoming`.
    """
    layers, experts = now.shape
    scores = np.empty(2 * layers * experts, np.float32)
    unsorted = np.empty(2 * layers * experts, np.int64)
    found = 0
    for layer in range(layers):
        for expert in range(experts):
            place = layer * experts + expert
            if absent[place] == 0:
                continue
            if now[layer, expert] >= least:
                scores[found] = now[layer, expert] * urgency[0, layer]
                unsorted[found] = place
                found += 1
            if upcoming[layer, expert] >= least:
                scores[found] = upcoming[layer, expert] * urgency[1, layer]
                unsorted[found] = place
                found += 1
    order = np.argsort(scores[:found], kind="mergesort")
    for i in range(found):
        places[i] = unsorted[order[i]]
    return found


@kernel
def any_turned_likely(now, before, absent, least):
    """Whether an expert without a slot is at least `least` likely now and was not before; float32 as above."""
    layers, experts = now.shape
    for layer in range(layers):
        for expert in range(experts):
            if now[layer, expert] >= least > before[layer, expert] and absent[layer * experts + expert] != 0:
                return True
    return False


@kernel
def least_valued(value, absent):
    """Where the smallest value is whose `absent` is 0, -1 where there is none; both float32 [places]."""
    found, least = -1, np.float32(np.inf)
    for place in range(value.shape[0]):
        if absent[place] == 0 and value[place] < least:
            found, least = place, value[place]
    return found


@kernel
def list_least_valued(value, absent, places):
    """Fills int64 `places` with those of the smallest values whose `absent` is 0, the smallest last; returns how many.

    value, absent: float32 [layers * experts].
    """
    most, found = places.shape[0], 0
    for place in range(value.shape[0]):
        if absent[place] != 0 or (found == most and value[place] >= value[places[0]]):
            continue
        i = 0 if found == most else found  # the list is kept in order, falling; where it is full, its first leaves
        if found < most:
            while i > 0 and value[places[i - 1]] <= value[place]:
                places[i] = places[i - 1]
                i -= 1
            found += 1
        else:
            while i + 1 < most and value[places[i + 1]] > value[place]:
                places[i] = places[i + 1]
                i += 1
        places[i] = place
    return found
