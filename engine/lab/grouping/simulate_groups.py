"""Groupings beside each other on recorded routing: pools, group sizes, budgets and eviction, with a bound by search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InvalidSetting
from engine.lab.grouping.best_split import best_split
from engine.lab.grouping.pass_cache import pass_cache
from engine.lab.grouping.pool import Pool
from engine.lab.grouping.replay import replay
from engine.lab.grouping.unseen import OnProgress, traces_of
from engine.lab.report import make_report
from engine.routing.predictor_files import find_predictor
from engine.routing.predictors.recurrent_batch import RecurrentBatch, can_batch
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace
from engine.scheduling.cost import most_likely
from engine.scheduling.groupings import (
    CACHE_AWARE,
    OFF,
    PAPER,
    RANDOM,
    WAVES,
    Grouping,
    Rounds,
    Waiting,
    make_grouping,
)
from engine.scheduling.paths import PathForecast, RecentPaths, path_forecast

BY_SEARCH = "by-search"
WAYS = (
    (RANDOM, False),
    (OFF, False),
    (PAPER, False),
    (PAPER, True),
    (CACHE_AWARE, False),
    (CACHE_AWARE, True),
    (BY_SEARCH, True),
    (WAVES, False),
)
"""A grouping's name, and whether it knows the true paths."""


@dataclass(frozen=True)
class GroupSettings:
    """`pools`: conversations at once; `shares` of all experts; `bound`: passes that may pass a token over, or
    twice as many as turns take; `tokens` of each conversation that are counted, as many before fill the cache;
    `start`: the position from which a conversation is decoded.
    """

    pools: tuple[int, ...] = (8, 16, 32)
    sizes: tuple[int, ...] = (4, 8, 16)
    shares: tuple[float, ...] = (0.15, 0.25, 0.50)
    policies: tuple[str, ...] = ("lru-per-layer", "adaptive")
    bound: int = 8
    tokens: int = 12
    start: int = 48


def simulate_recorded(
    files: Sequence[Path],
    model: str,
    settings: GroupSettings,
    seen_too: bool,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """`simulate_groups` of conversations in `files`, of `model`, that trained nothing. Raises EngineError."""
    least = settings.start + 2 * settings.tokens
    recorded, traces, expert_bytes = traces_of(files, model, max(settings.pools), least, seen_too, on_progress)
    stored, _ = find_predictor(recorded.fingerprint)
    return simulate_groups(traces, recorded.shape, expert_bytes, stored, settings, on_progress)


def simulate_groups(
    traces: Sequence[RoutingTrace],
    shape: RoutingShape,
    expert_bytes: int,
    stored: StoredPredictor | None,
    settings: GroupSettings,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """The report: `runs`, and of each its bytes over those of random groups of the same size; `forecasts`, how well and
    at which cost paths are predicted, with `stored`, by what a chat used lately, and by its last token.

    Raises InvalidSetting.
    """
    pools = [size for size in settings.pools if size <= len(traces)]
    if not pools:
        raise InvalidSetting(
            f"{len(traces)} recorded conversations are too few.", f"Record {min(settings.pools)} or more."
        )
    runs: list[dict[str, Any]] = []
    for size in pools:
        pool = _pool(traces[:size], shape, path_forecast(stored, shape, size), settings)
        cells = list(_cells(size, settings))
        for number, (group_size, share, policy) in enumerate(cells):
            runs += _compare(pool, shape, expert_bytes, group_size, share, policy, settings)
            on_progress(f"Grouped {size} conversations", number + 1, len(cells))
    forecasts = _forecasts(traces[: pools[-1]], shape, stored, settings)
    return make_report(runs, _ratios(runs), settings=asdict(settings), conversations=len(traces), forecasts=forecasts)


def _pool(traces: Sequence[RoutingTrace], shape: RoutingShape, forecast: PathForecast, settings: GroupSettings) -> Pool:
    return Pool(traces, shape, forecast, settings.start, _most_tokens(traces, settings))


def _forecasts(
    traces: Sequence[RoutingTrace], shape: RoutingShape, stored: StoredPredictor | None, settings: GroupSettings
) -> dict[str, dict[str, float]]:
    made: dict[str, PathForecast] = {
        "recent": RecentPaths(shape, len(traces)),
        "previous": RecentPaths(shape, len(traces), memory=0.0),
    }
    if stored is not None and can_batch(stored):
        made["trained"] = RecurrentBatch(stored, len(traces))
    found = {}
    for name, forecast in made.items():
        pool = _pool(traces, shape, forecast, settings)
        found[name] = {"recall": pool.recall(), "ms_per_token": 1e3 * pool.seconds_per_token}
    return found


def _cells(pool: int, settings: GroupSettings) -> Iterator[tuple[int, float, str]]:
    for group_size in settings.sizes:
        if group_size < pool:
            for share in settings.shares:
                for policy in settings.policies:
                    yield group_size, share, policy


def _most_tokens(traces: Sequence[RoutingTrace], settings: GroupSettings) -> int:
    """Of a conversation: some are read more often than others."""
    return min(min(map(len, traces)) - settings.start, 8 * settings.tokens)


def _compare(
    pool: Pool,
    shape: RoutingShape,
    expert_bytes: int,
    group_size: int,
    share: float,
    policy: str,
    settings: GroupSettings,
) -> list[dict[str, Any]]:
    runs = []
    for name, knows_truth in WAYS:
        grouping = _searching() if name == BY_SEARCH else make_grouping(name, shape.top_k)
        cache = pass_cache(policy, shape, share)
        run = replay(pool, cache, grouping, group_size, settings.bound, settings.tokens * len(pool), knows_truth)
        runs.append(
            {
                "pool": len(pool),
                "group_size": group_size,
                "budget": f"{share:.0%}",
                "policy": policy,
                "grouping": name,
                "paths": "true" if knows_truth else "predicted" if grouping.needs_paths else "none",
                "recall": pool.recall() if grouping.needs_paths and not knows_truth else None,
                "tokens": run.tokens,
                "distinct_per_pass": run.distinct / run.passes,
                "distinct_per_token": run.distinct / run.tokens,
                "bytes_per_token": run.moved * expert_bytes / run.tokens,
                "worst_wait_passes": run.worst_wait,
                "scheduling_ms_per_pass": 1e3 * run.scheduling_seconds / run.passes,
            }
        )
    return runs


def _searching() -> Grouping:
    def split(waiting: Waiting, size: int) -> list[np.ndarray]:
        assert waiting.paths is not None and waiting.absent is not None
        paths = most_likely(waiting.paths, waiting.paths.shape[-1]).reshape(len(waiting.paths), -1)
        groups, absent = best_split(paths, size), waiting.absent.reshape(-1)
        return sorted(groups, key=lambda places: float(paths[places].any(0) @ absent))  # what is there is used first

    return Rounds(split, needs_paths=True)


def _ratios(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Bytes over those of random groups."""
    ratios, random = {}, 1.0
    for run in runs:
        if run["grouping"] == RANDOM:
            random = max(run["bytes_per_token"], 1.0)
            continue
        cell = f"{run['pool']}_{run['group_size']}_{run['budget']}_{run['policy']}"
        ratios[f"{cell}_{run['grouping']}_{run['paths']}"] = run["bytes_per_token"] / random
    return ratios
