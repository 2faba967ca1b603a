"""Forecast, eviction, prefetching and their gate, as they belong together wherever the forecast's sources come from."""

from __future__ import annotations

from dataclasses import dataclass

from engine.cache.deferred import DeferredEviction
from engine.cache.policies import EvictionPolicy
from engine.cache.policy_choice import ADAPTIVE, make_policy
from engine.cache.predicted_next_use import PredictedNextUse
from engine.cache.wave_eviction import WaveEviction
from engine.routing.cost_gate import CostGate
from engine.routing.forecast import Correction, Forecast, Readout
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.prefetcher import Prefetcher
from engine.routing.reuse import Reuse
from engine.routing.shape import RoutingShape
from engine.routing.wave_forecast import RowsCorrection, WaveForecast
from engine.routing.wave_prefetcher import WavePrefetcher


@dataclass(frozen=True)
class PredictivePolicy:
    """What the cache is given (eviction, prefetcher, waves), and what is told and asked beside it."""

    eviction: EvictionPolicy
    prefetcher: Prefetcher
    waves: WavePrefetcher
    predictor: RoutingPredictor
    forecast: Forecast
    gate: CostGate


def predictive_policy(
    shape: RoutingShape,
    predictor: RoutingPredictor,
    correction: Correction | None,
    readout: Readout | None,
    reuse: Reuse | None,
    rows_correction: RowsCorrection | None = None,
) -> PredictivePolicy:
    """Evicts as the adaptive policy while the gate is off. `rows_correction` is the correction of joint passes."""
    forecast = Forecast(shape, predictor, correction, readout, reuse)
    gate = CostGate()
    foreseen = PredictedNextUse(forecast.value)
    plain = DeferredEviction(make_policy(ADAPTIVE, shape.layers))
    of_waves = WaveForecast(shape.layers, shape.experts, shape.top_k, rows_correction)
    waves = WavePrefetcher(of_waves, foreseen.absent)
    eviction = WaveEviction(foreseen, plain, lambda: gate.on, of_waves, waves)
    return PredictivePolicy(eviction, Prefetcher(forecast, foreseen.absent, gate), waves, predictor, forecast, gate)
