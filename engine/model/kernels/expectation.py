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
def list_likely(now, upcoming, reach, least, places):
    """Fills int64 `places` with layer * experts + expert of what is at least `least` likely; returns how many.

    Last comes what is needed soonest: `now` by layer, before that the first `reach` layers of `upcoming`.
    """
    layers, experts = now.shape
    found = 0
    for layer in range(reach - 1, -1, -1):
        for expert in range(experts - 1, -1, -1):
            if upcoming[layer, expert] >= least:
                places[found] = layer * experts + expert
                found += 1
    for layer in range(layers - 1, -1, -1):
        for expert in range(experts - 1, -1, -1):
            if now[layer, expert] >= least:
                places[found] = layer * experts + expert
                found += 1
    return found
