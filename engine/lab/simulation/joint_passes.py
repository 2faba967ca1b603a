"""Several recorded conversations decoded together: in each pass a token of each, as a batch would read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from engine.checkpoint.expert_key import ExpertKey
from engine.errors import InvalidSetting
from engine.lab.simulation.acquisitions import distinct
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.traces.trace import RoutingTrace


@dataclass(frozen=True, eq=False)
class JointPass:
    """Of each chat's token: `experts` int [chats, layers, top k], `weights` alike, `ahead` [chats, layers, distances,
    experts] as RoutingTrace has it, None unless all were recorded with it; `expected` [chats, horizon, layers, experts]
    as each chat's predictor foretold it, if one was asked.
    """

    experts: np.ndarray
    weights: np.ndarray
    ahead: np.ndarray | None
    expected: np.ndarray | None = None

    @property
    def chats(self) -> int:
        return len(self.experts)

    def distinct(self, layer: int) -> list[int]:
        """The experts that any chat uses in `layer`."""
        return distinct(self.experts[:, layer].reshape(-1))


def joint_passes(
    traces: Sequence[RoutingTrace],
    chats: int,
    passes: int,
    new_predictor: Callable[[], RoutingPredictor] | None = None,
) -> Iterator[JointPass]:
    """`passes` of `chats` places; a conversation that ends gives its place to the next one, and those of the first
    pass are at different points, so that they do not end together. Ends early where the conversations do.

    `new_predictor` makes one for each place, which is asked about every token. Raises InvalidSetting for fewer
    conversations than places.
    """
    if len(traces) < chats:
        raise InvalidSetting(
            f"{len(traces)} recorded conversations are too few to decode {chats} together.", "Record more of them."
        )
    waiting = iter(traces)
    firsts = list(islice(waiting, chats))
    places = [_Place(new_predictor() if new_predictor else None) for _ in firsts]
    for number, (place, trace) in enumerate(zip(places, firsts, strict=True)):
        place.take(trace, number * len(trace) // (2 * chats))
    for _ in range(passes):
        yield _pass_of(places)
        for place in places:
            if not place.go_on():
                following = next(waiting, None)
                if following is None:
                    return
                place.take(following, 0)


def joint_acquisitions(passes: Sequence[JointPass]) -> Iterator[list[ExpertKey]]:
    """What these passes ask the cache for, in order: a layer's experts at a time."""
    for one in passes:
        for layer in range(one.experts.shape[1]):
            yield [ExpertKey(layer, expert) for expert in one.distinct(layer)]


class _Place:
    """Where one conversation after another is decoded."""

    def __init__(self, predictor: RoutingPredictor | None) -> None:
        self._predictor = predictor

    def take(self, trace: RoutingTrace, row: int) -> None:
        self.trace, self.row = trace, row
        if self._predictor is not None:
            self._predictor.begin()

    def go_on(self) -> bool:
        """To the next token; False where there is none."""
        self.row += 1
        return self.row < len(self.trace)

    def expected(self) -> np.ndarray | None:
        """[horizon, layers, experts]; the predictor is then told what was used."""
        if self._predictor is None:
            return None
        trace, row = self.trace, self.row
        found = self._predictor.predict(int(trace.token_ids[row])).copy()
        hidden = None if trace.hidden is None else trace.hidden[row]
        self._predictor.observed(trace.experts[row], trace.weights[row], hidden)
        return found


def _pass_of(places: Sequence[_Place]) -> JointPass:
    return JointPass(
        np.stack([place.trace.experts[place.row] for place in places]),
        np.stack([place.trace.weights[place.row] for place in places]),
        _all([None if place.trace.ahead is None else place.trace.ahead[place.row] for place in places]),
        _all([place.expected() for place in places]),
    )


def _all(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    present = [array for array in arrays if array is not None]
    return np.stack(present) if len(present) == len(arrays) else None
