"""What is known at this moment about which experts will be needed: by this token's later layers, by the next tokens.

The predictor speaks before the step (stage 1); while the step runs, the routers of the layers ahead, applied to the
present residual stream, correct it (stage 2), and at a few layers a readout says more of the next token; a layer that
has been routed is no longer a guess. Eviction and prefetching read the result and nothing else.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from engine.routing.expectation import any_turned_likely, expect
from engine.routing.frequency import ExpertFrequency
from engine.routing.live_recall import LiveRecall
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.reuse import DISCOUNT, Reuse, expected_by_frequency
from engine.routing.shape import RoutingShape

CORRECTED_EVERY = 4  # layers; every second one gains 0.5 % in simulations, for 1.7 % of the computing time
COUNTED_EVERY = 4  # tokens: for the panel a sample does


def correcting_layers(layers: int) -> range:
    """The layers whose residual stream corrects what is thought of those after them. In a model of some depth the first
    is none of them: it has seen little but the token, which the predictor knows too, and in simulations only did harm.
    """
    first = CORRECTED_EVERY if layers > 2 * CORRECTED_EVERY else 0
    return range(first, layers, CORRECTED_EVERY)


class Correction(Protocol):
    """Stage 2: the layers ahead, seen from this one."""

    def ahead(self, layer: int, hidden: Any, stage1: np.ndarray) -> np.ndarray:
        """float32 [layers ahead, experts]: corrected probabilities for the next layers (fewer at the end), from the
        router's input in `layer` and what was thought of them before the step, [layers, experts].
        """


class Readout(Protocol):
    """The next token, seen from a layer of this one's step."""

    def __contains__(self, layer: int) -> bool:
        """Whether `layer` says something of it."""

    def at(self, layer: int, hidden: Any, stage1: np.ndarray) -> np.ndarray:
        """float32 [layers, experts]: probabilities, from the router's input in `layer` and what was thought of the next
        token before the step, [layers, experts].
        """


class Forecast:
    """Probabilities of use, kept up to date through a token's step.

    `now` float32 [layers, experts]: by the present token, in a layer that is still to come; zero for layers routed.
    `next` float32 [layers, experts]: by the token after it; zero where nothing is predicted.
    `value` float32 [layers, experts]: DISCOUNT to the power of the tokens until the next use, expected; what is used in
    a moment has 1, what is never used again 0.
    """

    def __init__(
        self,
        shape: RoutingShape,
        predictor: RoutingPredictor,
        correction: Correction | None = None,
        readout: Readout | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        layers, experts, top_k = shape.layers, shape.experts, shape.top_k
        self._predictor, self._correction, self._readout, self._reuse = predictor, correction, readout, reuse
        self._frequency = ExpertFrequency(shape)
        self._experts = np.full((layers, top_k), -1, np.int16)
        self._weights = np.zeros((layers, top_k), np.float32)
        self._every_layer = np.arange(layers)[:, None]
        self._used = np.zeros((layers, experts + 1), np.float32)  # the last column takes ids that mean nobody
        self._beyond = np.zeros((layers, experts), np.float32)  # what is expected after the next token
        self._later = np.zeros((layers, experts), np.float32)
        distance = (np.arange(layers) - np.arange(-1, layers)[:, None] - 1) % layers / layers
        self._phase = (DISCOUNT**distance).astype(np.float32)  # [layer routed + 1, layers]
        self.now = np.zeros((layers, experts), np.float32)
        self.next = np.zeros((layers, experts), np.float32)
        self.value = self._frequency.values.copy()
        self._rows = np.zeros((1, layers, experts), np.float32)
        self._after_next = self._expect_after_next()
        self._stage1 = np.zeros((layers, experts), np.float32)
        self.hidden: np.ndarray | None = None  # of the token in progress, after the last layer, if anybody tells
        self._before_routing = np.zeros((layers, experts), np.float32)  # `now`, of each layer at its very moment
        self.recall_before_step, self.recall_before_layer = LiveRecall(layers), LiveRecall(layers)
        self._routed = -1  # the last layer whose routing is known
        self._correcting = correcting_layers(layers)
        self.pauses = np.array(
            [layer in self._correcting or (readout is not None and layer in readout) for layer in range(layers)]
        )
        """bool [layers]: whose routing says more than itself."""
        self._steps = 0  # done

    def follow(self, predictor: RoutingPredictor) -> None:
        """From the next step on this one is asked and told: another chat's tokens are decoded. Between two steps."""
        self._predictor = predictor

    def predict(self, token_id: int) -> None:
        """Asks the predictor; changes nothing that others read."""
        self._rows = self._predictor.predict(token_id)
        self._after_next = self._expect_after_next()

    def begin_step(self) -> None:
        """The token that was predicted begins: it is known, nothing is computed."""
        rows = self._rows
        self.now[:] = self._stage1[:] = rows[0]
        self._look_beyond(rows)
        self._routed = -1
        self._revalue()

    def passed(self, first: int, experts: np.ndarray, weights: np.ndarray) -> None:
        """The real routing of layers `first`, `first` + 1, ..., [layers, top k] each, which is all that is made of it.
        Layers whose routing was known are skipped.
        """
        known = max(self._routed + 1 - first, 0)
        begin, end = first + known, first + len(experts)
        if begin >= end:
            return
        self._experts[begin:end], self._weights[begin:end] = experts[known:], weights[known:]
        if self._is_counted:
            self._before_routing[begin:end] = self.now[begin:end]
        self.now[begin:end] = 0
        self._routed = end - 1

    def observed(self, layer: int, hidden: Any, experts: np.ndarray, weights: np.ndarray) -> bool:
        """The real routing of `layer`, [top k] each, and what its router saw, [width] or [1, width]. True when more is
        known than that.
        """
        self.passed(layer, experts[None], weights[None])
        if not self.pauses[layer]:
            return False
        if layer in self._correcting and self._correction is not None and hidden is not None:
            ahead = self._correction.ahead(layer, hidden, self._stage1)
            self.now[layer + 1 : layer + 1 + len(ahead)] = ahead
        if self._readout is not None and layer in self._readout and hidden is not None:
            self._expect_next(self._readout.at(layer, hidden, self._rows[1]))
        self._revalue()
        return True

    def chance(self, key: tuple[int, int]) -> float:
        """Probability that the present token will still use the expert, or that the next one will: the larger."""
        return float(max(self.now[key], self.next[key]))

    def is_correction(self, key: tuple[int, int], least: float) -> bool:
        """True when the present token is likely to use the expert, `least` or more, and was not before its step."""
        return bool(self.now[key] >= least > self._stage1[key])

    def any_correction(self, absent: np.ndarray, least: np.float32) -> bool:
        """Whether `is_correction` is true of an expert whose `absent`, float32 [layers * experts], is not 0."""
        return bool(any_turned_likely(self.now, self._stage1, absent, least))

    def end_step(self) -> None:
        """All layers are done."""
        self._used[:] = 0
        self._used[self._every_layer, self._experts] = 1
        self._frequency.count(self._used[:, :-1])
        if self._is_counted:
            self.recall_before_step.count(self._stage1, self._experts)
            self.recall_before_layer.count(self._before_routing, self._experts)
        self._steps += 1
        self._predictor.observed(self._experts, self._weights, self.hidden)
        self.hidden = None

    @property
    def _is_counted(self) -> bool:
        """Whether the present step is."""
        return self._steps % COUNTED_EVERY == 0

    def _expect_after_next(self) -> np.ndarray:
        """DISCOUNT to the power of the tokens from the one after the next until the use, expected [layers, experts]."""
        by_frequency, memory = expected_by_frequency(self._frequency.values), self._predictor.memory
        if self._reuse is not None and memory is not None:
            return self._reuse(memory, by_frequency)
        later = by_frequency
        for row in self._rows[:1:-1]:
            later = row + (1 - row) * DISCOUNT * later
        return later

    def _look_beyond(self, rows: np.ndarray) -> None:
        """What the tokens after this one will use: predicted as far as that goes, then by frequency."""
        self._beyond[:] = self._after_next
        if len(rows) > 1:
            self._expect_next(rows[1])
        else:
            np.multiply(self._beyond, DISCOUNT, out=self._later)

    def _expect_next(self, row: np.ndarray) -> None:
        """Takes over what is thought of the next token, [layers, experts]."""
        self.next[:] = row
        np.multiply(row + (1 - row) * DISCOUNT * self._beyond, DISCOUNT, out=self._later)

    def _revalue(self) -> None:
        expect(self.now, self._later, self._phase[self._routed + 1], self.value)
