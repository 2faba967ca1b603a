"""Bounds of the predictive policy: what it would do, knew it a part of the future that it has to guess."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.errors import InvalidSetting
from engine.routing.predictors.baselines import Oracle
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.reuse import reuse_targets
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace

THIS, NEXT, REUSE = "this", "next", "reuse"
_NOTHING = np.zeros(0, np.float32)
KNOWN = {
    THIS: "which experts the present token uses",
    NEXT: "which experts the next token uses",
    REUSE: "how soon each expert is used again after the next token",
}


class Knowing(RoutingPredictor):
    """Replays `traces`, in order. Row 0 is the truth where `known` holds THIS, row 1 where it holds NEXT; the rest is
    what `inner` says.
    """

    def __init__(self, inner: RoutingPredictor, traces: Sequence[RoutingTrace], known: frozenset[str]) -> None:
        super().__init__(inner.shape, max(inner.horizon, 2))
        self.inner, self.oracle = inner, Oracle(inner.shape, traces, 2)
        self._rows = [row for row, part in enumerate((THIS, NEXT)) if part in known]
        self._out = self._empty()

    @property
    def memory(self) -> np.ndarray | None:
        return _NOTHING if self.inner.memory is None else self.inner.memory

    def begin(self) -> None:
        self.inner.begin()
        self.oracle.begin()

    def read(self, rows: RoutingTrace) -> None:
        self.inner.read(rows)
        self.oracle.read(rows)

    def predict(self, token_id: int) -> np.ndarray:
        self._out[: self.inner.horizon] = self.inner.predict(token_id)
        self._out[self._rows] = self.oracle.predict(token_id)[self._rows]
        return self._out

    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        self.inner.observed(experts, weights, hidden)
        self.oracle.observed(experts, weights, hidden)


class KnownReuse:
    """A Reuse that is right about the conversations that `oracle`, which was given the same, replays."""

    def __init__(self, shape: RoutingShape, traces: Sequence[RoutingTrace], oracle: Oracle) -> None:
        nobody = np.zeros((2, shape.layers, shape.experts), np.float32)
        self._values = [np.concatenate([reuse_targets(trace.multi_hot(shape.experts)), nobody]) for trace in traces]
        self._oracle = oracle

    def __call__(self, memory: np.ndarray, by_frequency: np.ndarray, /) -> np.ndarray:
        turn, position = self._oracle.place
        return by_frequency if turn < 0 else self._values[turn][position + 2]


def read_known(name: str) -> frozenset[str]:
    """From "predictive:this+next". Raises InvalidSetting for anything else after the colon."""
    known = frozenset(name.partition(":")[2].split("+"))
    if not known <= KNOWN.keys():
        words = ", ".join(f"{part} ({said})" for part, said in KNOWN.items())
        raise InvalidSetting(f"{name!r} does not say what is known.", f"After the colon, with + between them: {words}.")
    return known
