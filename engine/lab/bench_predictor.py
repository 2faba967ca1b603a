"""`bench predictor`: how well each predictor foresees recorded routing, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.lab.report import make_report, ratio
from engine.routing.blend import blend_of
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.predictors.registry import PredictorSources, make_predictor
from engine.routing.scoring.evaluation import evaluate
from engine.routing.scoring.evaluation_ahead import evaluate_ahead
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_set import read_traces
from engine.routing.training.split import split_by_conversation

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PredictorBench:
    """What to measure. `all_conversations`: also those that predictors may have been trained on; `prompts_too`: count
    tokens of prompts as well as of answers."""

    traces: tuple[Path, ...]
    predictors: tuple[str, ...]
    horizon: int = 3
    prompts_too: bool = False
    all_conversations: bool = False


def run_bench_predictor(settings: PredictorBench, on_progress: Progress | None = None) -> dict[str, Any]:
    """The report; each run's recall and precision are of single tokens. `ratios`: recall of row 0 at top k, over the
    table's."""
    recorded = read_traces(settings.traces)
    split = split_by_conversation(recorded.traces)
    asked = recorded.traces if settings.all_conversations else split.test
    sources = PredictorSources(recorded.shape, split.train, asked, recorded.model, settings.horizon)
    runs = []
    for number, name in enumerate(settings.predictors):
        if on_progress:
            on_progress(f"Measuring {name}", number, len(settings.predictors))
        runs.append(_measure(name, sources, asked, settings.prompts_too))
    top_k = str(recorded.shape.top_k)
    recall = {run["predictor"]: run["rows"][0]["recall"][top_k] for run in runs}
    ratios = {f"recall_{name}_over_table": ratio(value, recall.get("table")) for name, value in recall.items()}
    return make_report(
        runs,
        ratios,
        model=recorded.model,
        shape=recorded.shape.to_dict(),
        conversations=len({trace.conversation for trace in asked}),
        seen_in_training=settings.all_conversations,
    )


def _measure(name: str, sources: PredictorSources, asked: Sequence[RoutingTrace], prompts_too: bool) -> dict[str, Any]:
    predictor = make_predictor(name, sources)
    run: dict[str, Any] = {"predictor": name, "horizon": predictor.horizon}
    run |= evaluate(predictor, asked, prompts_too=prompts_too).to_dict()
    ahead = _ahead(predictor, asked, prompts_too)
    return run | {"ahead": ahead} if ahead else run


def _ahead(predictor: RoutingPredictor, asked: Sequence[RoutingTrace], prompts_too: bool) -> list[dict[str, Any]]:
    """What the next layers' routers add, for a predictor trained with them on conversations that tell."""
    stored = getattr(predictor, "stored", None)
    blend = None if stored is None else blend_of(stored.arrays)
    if blend is None or not any(trace.ahead is not None for trace in asked):
        return []
    return evaluate_ahead(predictor, blend, asked, prompts_too)
