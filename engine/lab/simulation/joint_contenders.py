"""Policies by name, as simulations of joint passes run them, and bounds that know the future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.cache.policies import Belady, EvictionPolicy
from engine.cache.policy_choice import ADAPTIVE, PLAIN_POLICIES, PREDICTIVE, make_policy
from engine.cache.predicted_next_use import PredictedNextUse
from engine.errors import InvalidSetting
from engine.lab.simulation.joint_passes import JointPass, joint_acquisitions
from engine.routing.blend import blend_of, routers_alone
from engine.routing.forecast import Forecast
from engine.routing.predictors.baselines import NoPrediction
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.prefetcher import Prefetcher
from engine.routing.shape import RoutingShape
from engine.routing.wave_correction import WaveBlend
from engine.routing.wave_forecast import DISCOUNT, WaveForecast
from engine.routing.wave_prefetcher import LEAST, MARGIN, WavePrefetcher

NOTHING_IS_LIKELY = 2.0  # as probabilities go
SURE_OF_IT = 0.02  # the margin of one who knows: any sooner use is worth a later one
EVICTION_ONLY = "waves-eviction"  # predictive, but nothing is loaded on a guess
WITHOUT_ROUTERS = "waves-frequency"  # predictive, but without the routers of the layers ahead
JOINT_NAMES = (*PLAIN_POLICIES, ADAPTIVE, PREDICTIVE, EVICTION_ONLY, WITHOUT_ROUTERS, "belady", "clairvoyant")


@dataclass(frozen=True)
class JointContender:
    """A policy, and what else there is when it predicts."""

    eviction: EvictionPolicy
    prefetcher: Prefetcher | None = None
    waves: WavePrefetcher | None = None


class RecordedWaveCorrection:
    """Stage 2 from what deeper routers said when the traces were recorded: `hidden` is that, [rows, distances,
    experts].
    """

    def __init__(self, blend: WaveBlend) -> None:
        self._blend = blend

    def touched_ahead(self, layer: int, hidden: np.ndarray, stage1: np.ndarray) -> np.ndarray:
        return self._blend(layer, hidden.astype(np.float32), stage1)


class PerfectWaveForecast(WaveForecast):
    """Knows every use of every pass."""

    def __init__(self, shape: RoutingShape, passes: Sequence[JointPass]) -> None:
        used = np.zeros((len(passes) + 1, shape.layers, shape.experts), np.float32)
        for number, one in enumerate(passes):
            for layer in range(shape.layers):
                used[number, layer, one.distinct(layer)] = 1
        self._used, self._number = used, -1
        self._worth = np.zeros_like(used)  # of the first use from that pass on
        for number in range(len(passes) - 1, -1, -1):
            self._worth[number] = np.where(used[number] > 0, 1, DISCOUNT * self._worth[number + 1])
        super().__init__(shape.layers, shape.experts, shape.top_k)

    def begin_pass(self, expected: np.ndarray | None = None) -> None:
        self._number += 1
        super().begin_pass()

    def _look_beyond(self, layer: int | slice, rows: int) -> None:
        self.due[layer] = self._used[self._number + 1, layer]
        self._later[layer] = self._worth[self._number + 1, layer]  # of what is not due


def make_joint_contender(
    name: str, passes: Sequence[JointPass], shape: RoutingShape, stored: StoredPredictor | None = None
) -> JointContender:
    """A fresh contender for these passes, in order: a plain policy, the engine's own ("predictive", with the trained
    predictor `stored` if there is one) or a part of it, or a bound that needs the future. Raises InvalidSetting.
    """
    if name in (*PLAIN_POLICIES, ADAPTIVE):
        return JointContender(make_policy(name, shape.layers))
    if name == "belady":
        return JointContender(Belady(joint_acquisitions(passes)))
    if name == "clairvoyant":
        return _bare(PerfectWaveForecast(shape, passes), shape, margin=SURE_OF_IT)
    blend = (None if stored is None else blend_of(stored.arrays)) or routers_alone(shape.layers, shape.top_k)
    correction = RecordedWaveCorrection(WaveBlend(blend, shape.top_k))
    if name == EVICTION_ONLY:
        return _bare(WaveForecast(shape.layers, shape.experts, shape.top_k, correction), shape, NOTHING_IS_LIKELY)
    if name == WITHOUT_ROUTERS:
        return _bare(WaveForecast(shape.layers, shape.experts, shape.top_k), shape)
    if name == PREDICTIVE:
        return _bare(WaveForecast(shape.layers, shape.experts, shape.top_k, correction), shape)
    raise InvalidSetting(
        f"There is no policy called {name!r} to simulate in joint passes.", f"Choose from {', '.join(JOINT_NAMES)}."
    )


def _bare(forecast: WaveForecast, shape: RoutingShape, least: float = LEAST, margin: float = MARGIN) -> JointContender:
    """Always on, whatever it gains."""
    eviction = PredictedNextUse(forecast.value)
    waves = WavePrefetcher(forecast, eviction.absent, gated=False, least=least, margin=margin)
    return JointContender(eviction, _unasked(shape, eviction), waves)


def _unasked(shape: RoutingShape, eviction: PredictedNextUse) -> Prefetcher:
    """For steps of one chat, which do not occur."""
    return Prefetcher(Forecast(shape, NoPrediction(shape)), eviction.absent)
