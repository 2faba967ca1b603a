"""Prompts answered several at once: what a step costs when it is read in one pass, and when chat after chat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from engine.checkpoint.catalog import resolve_model
from engine.engine import Engine
from engine.generation.joint_choice import Always
from engine.generation.request import BatchPrompt
from engine.lab.prompts import DEFAULT_PROMPTS, Messages
from engine.lab.report import make_report, ratio

WAYS = {"together": True, "apart": False}
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BatchBenchSettings:
    """`sizes`: prompts at once; each way answers the same prompts, in turn, `repeats` times."""

    model: str = "demo"
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    budgets: tuple[str, ...] = ("100%", "25%")
    link: str = "emulated:2.5GBps"
    policy: str = "lru-per-layer"
    tokens: int = 24
    repeats: int = 2
    prompts: tuple[Messages, ...] = DEFAULT_PROMPTS


def run_bench_batch(settings: BatchBenchSettings, on_progress: Progress) -> dict[str, Any]:
    """Runs for each size, budget and way; ratios of together over apart. Raises EngineError."""
    path = resolve_model(settings.model, on_progress)
    runs: list[dict[str, Any]] = []
    for budget in settings.budgets:
        for size in settings.sizes:
            on_progress(f"{budget} of the experts, {size} at once", len(runs), 0)
            with Engine.load(
                path, budget=budget, policy=settings.policy, link=settings.link, batch_size=size
            ) as engine:
                runs += _run(engine, settings, budget, size)
    ratios = {
        f"{together['budget']}_{together['batch_size']}": ratio(
            together["tokens_per_second"], apart["tokens_per_second"]
        )
        for together, apart in zip(runs[::2], runs[1::2], strict=True)
    }
    return make_report(runs, ratios, model=str(path), settings=asdict(settings) | {"prompts": len(settings.prompts)})


def _run(engine: Engine, settings: BatchBenchSettings, budget: str, size: int) -> list[dict[str, Any]]:
    """The two ways, in the order of WAYS."""
    prompts = [engine.encode(messages) for messages in settings.prompts]
    chosen = [BatchPrompt(prompts[n % len(prompts)], settings.tokens) for n in range(max(size, 4))]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for repeat in range(settings.repeats + 1):
        for way in WAYS if repeat % 2 else reversed(WAYS):
            measured = _measure(engine, chosen, WAYS[way])
            if repeat:  # the first fills the cache
                found[way].append(measured)
    return [
        {
            "way": way,
            "budget": budget,
            "batch_size": size,
            **{name: median(one[name] for one in measured) for name in measured[0]},
            "tokens_per_second_all": [one["tokens_per_second"] for one in measured],
        }
        for way, measured in found.items()
    ]


def _measure(engine: Engine, prompts: list[BatchPrompt], together: bool) -> dict[str, float]:
    before = engine.stats()
    for _ in engine.answer_batch(prompts, Always(together)):
        """Only what it took counts."""
    spent = engine.stats() - before
    tokens = max(spent.decode_steps, 1)
    return {
        "tokens_per_second": spent.tokens_per_second,
        "experts_per_token": spent.activations / tokens,
        "hit_rate": spent.hit_rate,
        "bytes_per_token": (spent.bytes_demand + spent.bytes_correction) / tokens,
        "stall_share": spent.stall_seconds / spent.decode_seconds if spent.decode_seconds else 0.0,
    }
