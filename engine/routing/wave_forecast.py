"""Which experts the rows of a joint pass will touch: each layer's, at its next turn in the cycle of layers.

A pass that reads a token of each of several chats touches most experts of every layer, always in the same order of
layers. So what counts of an expert is how likely any row needs it when its layer's turn comes, and how far off that
is. Before the pass that is known from how often its rows used it lately, or from predictions for each chat (stage 1);
during the pass, from the routers of the layers ahead applied to all rows' residual streams (stage 2).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from engine.routing.expectation import expect
from engine.routing.touching import touched_by_any

CORRECTED_EVERY = 2  # layers
FREQUENCY_PASSES, FREQUENCY_ROWS = 16, 64  # half of what is known of an expert's use is as young as the longer of both
DISCOUNT = 0.5  # for each pass until the next use


class RowsCorrection(Protocol):
    """Stage 2: the layers ahead, seen from this one, for any of the rows."""

    def touched_ahead(self, layer: int, hidden: Any, stage1: np.ndarray) -> np.ndarray:
        """float32 [layers ahead, experts]: the probability that any row uses the expert, for the next layers (fewer at
        the end); from the router's input in `layer`, [rows, width], and what was thought of the rows before the pass,
        [rows or 1, layers, experts].
        """


class WaveForecast:
    """Kept up to date through a pass; eviction and prefetching read it and nothing else.

    `due` float32 [layers, experts]: probability that any row uses the expert at its layer's next turn: in this pass
    for a layer still to come, in the next one for a layer routed already.
    `value` float32 [layers, experts]: `discount` to the power of the passes until the next use, expected.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        top_k: int,
        correction: RowsCorrection | None = None,
        discount: float = DISCOUNT,
    ) -> None:
        self._correction = correction
        self._discount = np.float32(discount)
        self._share = np.full((layers, experts), top_k / experts, np.float32)  # of the rows, that used it lately
        self._stage1: np.ndarray | None = None  # of each row, if somebody told
        self._following: np.ndarray | None = None  # touched in the next pass, likewise
        distance = np.arange(layers)[None] - np.arange(layers)[:, None]
        self._phase = (self._discount ** (distance % layers / layers)).astype(np.float32)  # [next layer, layers]
        self._later = np.zeros((layers, experts), np.float32)
        self._before = np.zeros((layers, experts), np.float32)  # `due` of each layer, before its pass began
        self.due = np.zeros((layers, experts), np.float32)
        self.value = np.zeros((layers, experts), np.float32)
        self.next_layer = 0
        """Whose turn comes next."""
        self.rows = 0
        """Of the last pass."""
        self._look_beyond(slice(None), 1)

    @property
    def layers(self) -> int:
        return len(self.due)

    def begin_pass(self, expected: np.ndarray | None = None) -> None:
        """A pass begins. `expected` float32 [rows, horizon, layers, experts]: what a predictor says of each row's token
        and those after it, where one was asked; without, an expert's share of the last passes' rows counts for each.
        """
        self._stage1 = self._following = None
        if expected is not None:
            self._stage1 = expected[:, 0]
            self.due[:] = touched_by_any(self._stage1)
            self._following = touched_by_any(expected[:, 1]) if expected.shape[1] > 1 else None
        self.next_layer = 0
        np.copyto(self._before, self.due)
        self._revalue()

    def observed(self, layer: int, hidden: Any, experts: np.ndarray) -> None:
        """The real routing of `layer`, [rows, top k], and what its router saw, [rows, width]."""
        rows, count = len(experts), self.due.shape[1]
        used = np.bincount(experts[(experts >= 0) & (experts < count)], minlength=count)
        forget = 1 - 2 ** (-1 / max(FREQUENCY_PASSES, FREQUENCY_ROWS / rows))
        self._share[layer] += np.float32(forget) * (used / np.float32(rows) - self._share[layer])
        self.rows = rows
        self._look_beyond(layer, rows)
        self.next_layer = (layer + 1) % self.layers
        if self._correction is not None and hidden is not None and layer % CORRECTED_EVERY == 0:
            stage1 = self._share[None] if self._stage1 is None else self._stage1
            ahead = self._correction.touched_ahead(layer, hidden, stage1)
            self.due[layer + 1 : layer + 1 + len(ahead)] = ahead
        self._revalue()

    def was_unlikely(self, key: tuple[int, int], least: float) -> bool:
        """Whether less than `least` was thought of the expert before the pass."""
        return bool(self._before[key] < least)

    def _look_beyond(self, layer: int | slice, rows: int) -> None:
        """What is expected at the next turn of `layer`, and after it, as far as frequencies tell."""
        touched = 1 - (1 - np.minimum(self._share[layer], 0.999)) ** rows
        self.due[layer] = touched if self._following is None else self._following[layer]
        self._later[layer] = self._discount * touched / (1 - self._discount * (1 - touched))

    def _revalue(self) -> None:
        expect(self.due, self._later, self._phase[self.next_layer], self.value)
