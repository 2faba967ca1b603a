"""The predictive policy for a loaded model: its predictor, its routers, and what keeps them told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.cache.policies import EvictionPolicy
from engine.cache.policy_choice import ADAPTIVE, AUTO, PREDICTIVE
from engine.routing.blend import blend_of, routers_alone
from engine.routing.correction import RouterCorrection
from engine.routing.cost_gate import CostGate
from engine.routing.forecast import Forecast
from engine.routing.lookahead import RouterLookahead
from engine.routing.predictive_policy import predictive_policy
from engine.routing.predictor_feed import PredictorFeed
from engine.routing.predictor_files import find_predictor
from engine.routing.predictors.baselines import NoPrediction
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.predictors.registry import predictor_of
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.prefetcher import Prefetcher
from engine.routing.readout import readout_of
from engine.routing.reuse import reuse_of
from engine.routing.traces.traced_model import TracedModel
from engine.routing.wave_correction import RouterWaveCorrection, WaveBlend
from engine.routing.wave_prefetcher import WavePrefetcher
from engine.snapshot import ForesightSnapshot


@dataclass(frozen=True)
class Foresight:
    """`source` says in words where the predictions come from. `new_feed()` is one more chat's history."""

    eviction: EvictionPolicy
    prefetcher: Prefetcher
    waves: WavePrefetcher
    new_feed: Callable[[], PredictorFeed]
    source: str
    _forecast: Forecast
    _gate: CostGate

    def snapshot(self) -> ForesightSnapshot:
        """How well it goes, for panels."""
        return ForesightSnapshot(
            pays=self._gate.pays,
            gain=self._gate.gain,
            recall_before_step=self._forecast.recall_before_step.by_layer(),
            recall_before_layer=self._forecast.recall_before_layer.by_layer(),
            source=self.source,
        )


def make_foresight(model: Any, traced: TracedModel, experts_per_layer: Sequence[int]) -> Foresight:
    """With the predictor trained for this model where there is one; else with its routers alone, if they are known."""
    shape = traced.shape
    stored, problem = find_predictor(traced.fingerprint)

    def new_predictor() -> RoutingPredictor:
        return NoPrediction(shape) if stored is None else predictor_of(stored)

    blend = None if stored is None else blend_of(stored.arrays)
    reason = RouterLookahead.supports(model)
    correction = rows_correction = None
    if reason is None:
        lookahead, blend = RouterLookahead(model), blend or routers_alone(shape.layers, shape.top_k)
        correction = RouterCorrection(lookahead, blend)
        rows_correction = RouterWaveCorrection(lookahead, WaveBlend(blend, shape.top_k))
    readout = None if stored is None else readout_of(stored.arrays, shape.layers)
    reuse = None if stored is None else reuse_of(stored.arrays)
    made = predictive_policy(shape, NoPrediction(shape), correction, readout, reuse, rows_correction)

    def new_feed() -> PredictorFeed:
        return PredictorFeed(new_predictor(), made.forecast, experts_per_layer)

    source = _in_words(stored, reason) + problem
    return Foresight(made.eviction, made.prefetcher, made.waves, new_feed, source, made.forecast, made.gate)


def choose_policy(asked: str, fingerprint: str, from_page_cache: bool = False) -> str:
    """What "auto" means for this model; any other policy as it was asked for.

    `from_page_cache`: experts are copied out of RAM by the processor that computes. A guess then takes its time even
    where nobody waits: predicting was measured to cost a tenth of the speed there.
    """
    if asked != AUTO:
        return asked
    if from_page_cache:
        return ADAPTIVE
    stored, _ = find_predictor(fingerprint)
    return ADAPTIVE if stored is None else PREDICTIVE


def _in_words(stored: StoredPredictor | None, reason: str | None) -> str:
    trained = "a predictor trained for this model" if stored is not None else ""
    routers = "the routers of the layers ahead" if reason is None else ""
    sources = " and ".join(source for source in (trained, routers) if source)
    return f"Predictions come from {sources or 'how often each expert was used'}."
