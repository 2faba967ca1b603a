"""How soon an expert is used again, after the next token: what decides who leaves the cache.

How often an expert was used of late says something of it; what a predictor remembers of the conversation says more. A
small network reads that memory and mends what the frequency says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from engine.routing.small_network import SmallNetwork, StoredSmallNetwork, is_stored

NAME = "reuse"
DISCOUNT = np.float32(0.5)  # what a use is worth falls by this factor with each token until then


class Reuse(Protocol):
    """The uses after the next token, as the present one's predictor foresees them."""

    def __call__(self, memory: np.ndarray, by_frequency: np.ndarray, /) -> np.ndarray:
        """float32 [layers, experts], overwritten by the next call: expected DISCOUNT ** n, where the n-th token after
        the next one is the first to use the expert, counting from 0.

        memory: float32 [width], the predictor's; by_frequency: `expected_by_frequency`.
        """


def expected_by_frequency(frequency: np.ndarray) -> np.ndarray:
    """Expected DISCOUNT ** n, were every token as likely as any other, `frequency`, to use the expert."""
    return np.asarray(frequency / (1 - DISCOUNT * (1 - frequency)))


def reuse_targets(used: np.ndarray) -> np.ndarray:
    """float32 [tokens, layers, experts]: DISCOUNT ** n, where the n-th token from each one on, itself being the 0th, is
    the first to use the expert; 0 where none does. used: [tokens, layers, experts], 0 or 1.
    """
    values = np.zeros((len(used) + 1, *used.shape[1:]), np.float32)
    for token in range(len(used) - 1, -1, -1):
        values[token] = np.where(used[token] > 0, np.float32(1), DISCOUNT * values[token + 1])
    return values[:-1]


def reuse_arrays(network: SmallNetwork) -> dict[str, np.ndarray]:
    """As it is kept in a predictor's file."""
    return network.arrays(NAME)


def stored_reuse(arrays: Mapping[str, np.ndarray]) -> SmallNetwork | None:
    """The network in a predictor's file, if one is, to learn on."""
    return SmallNetwork.of(arrays, NAME) if is_stored(arrays, NAME) else None


def reuse_of(arrays: Mapping[str, np.ndarray]) -> Reuse | None:
    """The one kept in a predictor's file, if one is."""
    return StoredSmallNetwork(arrays, NAME) if is_stored(arrays, NAME) else None
