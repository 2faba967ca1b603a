"""What a token's residual stream says in mid-step about the token after it, whose id nobody knows yet.

At a few layers on the way (`tap_layers`) a small network reads what the router sees there and gives the routing of the
next token, mixed with what was predicted of it before the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.routing.forecast import CORRECTED_EVERY
from engine.routing.small_network import SmallNetwork, StoredSmallNetwork, is_stored

PREFIX = "readout"
TAPS = 3


def tap_layers(layers: int) -> tuple[int, ...]:
    """The layers whose router inputs are read: about two, three and four fifths on the way, where the token's own
    routing is corrected too, since to pause at a layer has its price. Tapping the first fifth as well would gain 0.1 %
    more speed in simulations.
    """
    fifths = (layers * fifth / (TAPS + 2) for fifth in range(2, TAPS + 2))
    return tuple(sorted({int(place / CORRECTED_EVERY + 0.5) * CORRECTED_EVERY for place in fifths} & {*range(layers)}))


class NextTokenReadout:
    """Small networks by the layer they read, ready to be asked."""

    def __init__(self, arrays: Mapping[str, np.ndarray], layers: Sequence[int]) -> None:
        self._taps = {layer: StoredSmallNetwork(arrays, f"{PREFIX}.{layer}") for layer in layers}

    def __contains__(self, layer: int) -> bool:
        return layer in self._taps

    def at(self, layer: int, hidden: Any, stage1: np.ndarray) -> np.ndarray:
        """float32 [layers, experts]: probability that the next token uses the expert.

        hidden: [width] or [1, width], what the router of `layer`, a tap, saw; stage1: [layers, experts], what was
        thought of the next token before.
        """
        return self._taps[layer](np.asarray(hidden, np.float32).reshape(-1), np.asarray(stage1, np.float32))


def readout_arrays(taps: Mapping[int, SmallNetwork]) -> dict[str, np.ndarray]:
    """As they are kept in a predictor's file."""
    return {key: array for layer, tap in taps.items() for key, array in tap.arrays(f"{PREFIX}.{layer}").items()}


def stored_taps(arrays: Mapping[str, np.ndarray], layers: int) -> dict[int, SmallNetwork]:
    """The networks in a predictor's file, to learn on."""
    kept = {layer: f"{PREFIX}.{layer}" for layer in tap_layers(layers)}
    return {layer: SmallNetwork.of(arrays, name) for layer, name in kept.items() if is_stored(arrays, name)}


def readout_of(arrays: Mapping[str, np.ndarray], layers: int) -> NextTokenReadout | None:
    """The one kept in a predictor's file for a model of so many MoE layers, if one is."""
    kept = [layer for layer in tap_layers(layers) if is_stored(arrays, f"{PREFIX}.{layer}")]
    return NextTokenReadout(arrays, kept) if kept else None
