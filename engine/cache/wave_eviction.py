"""Who chooses the victims where steps of one chat and passes of several alternate."""

from __future__ import annotations

from collections.abc import Callable, Container

from engine.cache.policies import EvictionPolicy
from engine.cache.predicted_next_use import PredictedNextUse, SwitchedEviction
from engine.checkpoint.expert_key import ExpertKey
from engine.routing.wave_forecast import WaveForecast
from engine.routing.wave_prefetcher import WavePrefetcher


class WaveEviction(SwitchedEviction):
    """In steps of one chat `foreseen` or `plain`, as `use_first()` says; in joint passes by their own `forecast`
    while `waves` is on, else `plain`.

    Who leaves in a joint pass is read off the forecast alone: telling the other two is all that is told.
    """

    def __init__(
        self,
        foreseen: PredictedNextUse,
        plain: EvictionPolicy,
        use_first: Callable[[], bool],
        forecast: WaveForecast,
        waves: WavePrefetcher,
    ) -> None:
        super().__init__(foreseen, plain, use_first)
        self._plain, self._waves = plain, waves
        self._in_waves = PredictedNextUse(forecast.value, foreseen.absent)

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        if not self._waves.in_joint_pass:
            return super().victim(blocked, incoming)
        return (self._in_waves if self._waves.on else self._plain).victim(blocked, incoming)
