"""Forecast, eviction, prefetching and their gate, as they belong together wherever the forecast's sources come from."""

from __future__ import annotations

from dataclasses import dataclass

from engine.cache.deferred import DeferredEviction
from engine.cache.policies import EvictionPolicy
from engine.cache.policy_choice import ADAPTIVE, make_policy
from engine.cache.predicted_next_use import PredictedNextUse, SwitchedEviction
from engine.routing.cost_gate import CostGate
from engine.routing.forecast import Correction, Forecast, Readout
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.prefetcher import Prefetcher
from engine.routing.shape import RoutingShape


@dataclass(frozen=True)
class PredictivePolicy:
    """What the cache is given (eviction, prefetcher), and what is told and asked beside it."""

    eviction: EvictionPolicy
    prefetcher: Prefetcher
    predictor: RoutingPredictor
    forecast: Forecast
    gate: CostGate


def predictive_policy(
    shape: RoutingShape, predictor: RoutingPredictor, correction: Correction | None, readout: Readout | None
) -> PredictivePolicy:
    """Evicts as the adaptive policy while the gate is off."""
    forecast = Forecast(shape.layers, shape.experts, shape.top_k, predictor, correction, readout)
    gate = CostGate()
    foreseen = PredictedNextUse(forecast.value)
    plain = DeferredEviction(make_policy(ADAPTIVE, shape.layers))
    eviction = SwitchedEviction(foreseen, plain, lambda: gate.on)
    return PredictivePolicy(eviction, Prefetcher(forecast, foreseen.absent, gate), predictor, forecast, gate)
