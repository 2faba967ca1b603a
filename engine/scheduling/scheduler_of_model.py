"""The token scheduler for a loaded model: its predictor, its cache, and who tells it of routing."""

from __future__ import annotations

import numpy as np

from engine.cache.expert_cache import ExpertCache
from engine.routing.predictor_files import find_predictor
from engine.routing.predictors.recurrent_batch import can_batch
from engine.routing.traces.traced_model import TracedModel
from engine.scheduling.group_rows import GroupRows
from engine.scheduling.paths import PathForecast, path_forecast
from engine.scheduling.token_scheduler import TokenScheduler


def make_token_scheduler(traced: TracedModel, experts: ExpertCache, rows: GroupRows, places: int) -> TokenScheduler:
    """For up to `places` chats. `rows` are told of routing by whoever made them."""

    stored, _ = find_predictor(traced.fingerprint)
    trained = stored is not None and can_batch(stored)

    def forecast() -> PathForecast:
        return path_forecast(stored, traced.shape, places)

    def absent() -> np.ndarray:
        return (experts.residency_map() == 0).astype(np.float32)

    def foresees() -> bool:
        return trained and experts.foresees_joint_passes

    return TokenScheduler(traced.shape, forecast, absent, rows, places, foresees)
