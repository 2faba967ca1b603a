"""Policies by name, as simulations run them: the plain ones, the predictive one, and bounds that know the future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.cache.least_stale import LeastStale
from engine.cache.policies import Belady, EvictionPolicy
from engine.cache.policy_choice import ADAPTIVE, PLAIN_POLICIES, PREDICTIVE, make_policy
from engine.cache.predicted_next_use import PredictedNextUse
from engine.errors import InvalidSetting
from engine.lab.simulation.acquisitions import acquisitions
from engine.lab.simulation.knowing import NEXT, REUSE, THIS, Knowing, KnownReuse, read_known
from engine.routing.blend import Blend, blend_of, routers_alone
from engine.routing.forecast import Forecast
from engine.routing.predictive_policy import predictive_policy
from engine.routing.predictors.baselines import NoPrediction, Oracle
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.predictors.registry import predictor_of
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.prefetcher import Prefetcher
from engine.routing.readout import NextTokenReadout, readout_of
from engine.routing.reuse import reuse_of
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace

COMPARED = ("least-stale",)  # in simulations alone
BOUNDS = ("belady", "clairvoyant")
CLAIRVOYANT_TOKENS = 4  # that it sees, the present one among them


@dataclass(frozen=True)
class Contender:
    """A policy, and what else there is when it predicts."""

    eviction: EvictionPolicy
    prefetcher: Prefetcher | None = None
    predictor: RoutingPredictor | None = None
    forecast: Forecast | None = None


@dataclass(frozen=True)
class RecordedView:
    """What was recorded of one layer in place of what its router saw; None where nothing was.

    ahead: [distances, experts], what deeper routers said; midway: [width], the router's input, of tapped layers.
    """

    ahead: np.ndarray | None
    midway: np.ndarray | None


class RecordedCorrection:
    """Stage 2 from what deeper routers said when the trace was recorded."""

    def __init__(self, blend: Blend) -> None:
        self._blend = blend

    def ahead(self, layer: int, hidden: RecordedView, stage1: np.ndarray) -> np.ndarray:
        return stage1[:0] if hidden.ahead is None else self._blend(layer, stage1, hidden.ahead)


class RecordedReadout:
    """The readout from what the routers of its layers saw when the trace was recorded."""

    def __init__(self, readout: NextTokenReadout) -> None:
        self._readout = readout

    def __contains__(self, layer: int) -> bool:
        return layer in self._readout

    def at(self, layer: int, hidden: RecordedView, stage1: np.ndarray) -> np.ndarray:
        return stage1 if hidden.midway is None else self._readout.at(layer, hidden.midway, stage1)


def make_contender(
    name: str, traces: Sequence[RoutingTrace], shape: RoutingShape, stored: StoredPredictor | None = None
) -> Contender:
    """A fresh contender to decode `traces`, in order.

    "predictive" is the engine's own, with the trained predictor `stored` if there is one, and "predictive:this+next"
    the same if it knew that part of the future (KNOWN); "belady" evicts as the least-moving demand cache, which never
    prefetches; "clairvoyant" prefetches with perfect predictions. What knows the future is a bound. Raises
    InvalidSetting.
    """
    if name.partition(":")[0] == PREDICTIVE:
        return _predictive(shape, stored, traces, frozenset() if name == PREDICTIVE else read_known(name))
    if name == "least-stale":
        return Contender(LeastStale(shape.layers))
    if name == "belady":
        return Contender(Belady(acquisitions(traces)))
    if name == "clairvoyant":
        oracle = Oracle(shape, traces, CLAIRVOYANT_TOKENS)
        forecast = Forecast(shape, oracle)
        eviction = PredictedNextUse(forecast.value)
        return Contender(eviction, Prefetcher(forecast, eviction.absent), oracle, forecast)
    if name not in (*PLAIN_POLICIES, ADAPTIVE):
        names = ", ".join((*PLAIN_POLICIES, ADAPTIVE, PREDICTIVE, *COMPARED, *BOUNDS))
        raise InvalidSetting(f"There is no policy called {name!r} to simulate.", f"Choose from {names}.")
    return Contender(make_policy(name, shape.layers))


def _predictive(
    shape: RoutingShape, stored: StoredPredictor | None, traces: Sequence[RoutingTrace], known: frozenset[str]
) -> Contender:
    """The engine's own, with stage 2 and the readout from what was recorded; what is `known` is not guessed."""
    arrays = {} if stored is None else stored.arrays
    knowing = Knowing(NoPrediction(shape) if stored is None else predictor_of(stored), traces, known)
    correction = RecordedCorrection(blend_of(arrays) or routers_alone(shape.layers, shape.top_k))
    readout = readout_of(arrays, shape.layers)
    made = predictive_policy(
        shape,
        knowing if known else knowing.inner,
        None if THIS in known else correction,
        None if NEXT in known or readout is None else RecordedReadout(readout),
        KnownReuse(shape, traces, knowing.oracle) if REUSE in known else reuse_of(arrays),
    )
    return Contender(made.eviction, made.prefetcher, made.predictor, made.forecast)
