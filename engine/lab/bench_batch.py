"""Prompts answered several at once: chat after chat, in one pass, and grouped by each token scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.catalog import resolve_model
from engine.engine import Engine
from engine.generation.joint_choice import JointChoice
from engine.generation.request import BatchPrompt
from engine.lab.batch_roofline import Roofline
from engine.lab.held_out import HELD_OUT_DIR
from engine.lab.prompts import Messages, read_prompts
from engine.lab.report import make_report, median_run, ratio
from engine.scheduling.groupings import CACHE_AWARE, OFF, PAPER, WAVES, check_scheduler
from engine.scheduling.token_scheduler import SchedulerSettings

LEAST_GROUPED = 4  # chats; of fewer there are no groups worth the name
LEAST_PROMPTS = 4  # answered one after another where fewer are asked at once
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BatchBenchSettings:
    """`sizes`: prompts at once; every contender answers the same prompts, in turn, `repeats` times. `group_size`: most
    tokens in a pass of a grouping; None: half of the chats. `prompts`: None for the held-out chats, of mixed topics.
    """

    model: str = "demo"
    sizes: tuple[int, ...] = (1, 4, 8, 16, 32)
    budgets: tuple[str, ...] = ("100%", "25%")
    links: tuple[str, ...] = ("emulated:2.5GBps",)
    policy: str = "lru-per-layer"
    schedulers: tuple[str, ...] = (WAVES, OFF, PAPER, CACHE_AWARE)
    group_size: int | None = None
    tokens: int = 16
    repeats: int = 2
    prompts: tuple[Messages, ...] | None = None


@dataclass(frozen=True)
class _Contender:
    """`way`: "apart" is chat after chat; `group_size` None: all in one pass."""

    way: str
    scheduler: str
    group_size: int | None = None


APART = _Contender("apart", WAVES)


def run_bench_batch(settings: BatchBenchSettings, on_progress: Progress) -> dict[str, Any]:
    """Runs for each budget, link, size and contender. `ratios`: speed of one pass over chat after chat; speed and bytes
    of each scheduler over those of groups of the same size in order of arrival. Raises EngineError.
    """
    for name in settings.schedulers:
        check_scheduler(name)
    path = resolve_model(settings.model, on_progress)
    prompts = settings.prompts or tuple(read_prompts(HELD_OUT_DIR / "chats.jsonl"))
    cells = [(b, link, n) for b in settings.budgets for link in settings.links for n in settings.sizes]
    runs: list[dict[str, Any]] = []
    identical = True
    for number, cell in enumerate(cells):
        on_progress(f"{cell[0]} of the experts over {cell[1]}, {cell[2]} at once", number, len(cells))
        found, same = _run_cell(path, settings, prompts, *cell)
        runs += found
        identical = identical and same
    facts = asdict(settings) | {"prompts": len(prompts)}
    return make_report(runs, _ratios(runs), model=str(path), settings=facts, identical_ids=identical)


def _run_cell(
    path: Path, settings: BatchBenchSettings, prompts: Sequence[Messages], budget: str, link: str, size: int
) -> tuple[list[dict[str, Any]], bool]:
    """A run of each contender, and whether all gave the same answers in every round."""
    contenders = list(_contenders(settings, size))
    measured: dict[_Contender, list[dict[str, Any]]] = {contender: [] for contender in contenders}
    answers = set()
    with Engine.load(path, budget=budget, policy=settings.policy, link=link, batch_size=size) as engine:
        count = max(size, LEAST_PROMPTS)
        asked = [BatchPrompt(engine.encode(prompts[n % len(prompts)]), settings.tokens) for n in range(count)]
        roofline = Roofline(engine, path)
        steps = {contender: roofline.record(contender != APART) for contender in contenders}
        _measure(engine, asked, contenders[0], roofline.record(joint=True))  # fills the cache, and reads the prompts
        roofline.measure_machine()
        for repeat in range(settings.repeats):
            for contender in contenders if repeat % 2 else reversed(contenders):
                found, ids = _measure(engine, asked, contender, steps[contender])
                measured[contender].append(found)
                answers.add(ids)
            roofline.measure_machine()
    cell = {"budget": budget, "link": link, "batch_size": size}
    beside = {of: roofline.beside(steps[of], of.group_size or size) for of in contenders}
    runs = [cell | asdict(contender) | median_run(found) | beside[contender] for contender, found in measured.items()]
    return runs, len(answers) == 1


def _contenders(settings: BatchBenchSettings, size: int) -> Iterator[_Contender]:
    yield _Contender("together", WAVES)
    yield APART
    group_size = settings.group_size or size // 2
    if size >= LEAST_GROUPED and group_size < size:
        for name in settings.schedulers:
            if name != WAVES:
                yield _Contender("together", name, group_size)


def _measure(
    engine: Engine, prompts: Sequence[BatchPrompt], contender: _Contender, choice: JointChoice
) -> tuple[dict[str, Any], tuple[tuple[int, ...], ...]]:
    """What it took, and each prompt's ids."""
    engine.schedule(SchedulerSettings(contender.scheduler, contender.group_size))
    before, scheduled = engine.stats(), engine.scheduler_stats()
    found = {answer.number: tuple(answer.ids) for answer in engine.answer_batch(prompts, choice)}
    spent, scheduling = engine.stats() - before, engine.scheduler_stats() - scheduled
    tokens, passes = max(spent.decode_steps, 1), max(scheduling.passes, 1)
    seconds = spent.decode_seconds + scheduling.scheduling_seconds
    facts = {
        "tokens_per_second": spent.time_dilation * spent.decode_steps / seconds if seconds else 0.0,
        "experts_per_pass": spent.activations / passes,
        "experts_per_token": spent.activations / tokens,
        "hit_rate": spent.hit_rate,
        "bytes_per_token": spent.bytes_total / tokens,
        "stall_share": spent.stall_seconds / spent.decode_seconds if spent.decode_seconds else 0.0,
        "scheduling_ms_per_pass": 1e3 * scheduling.scheduling_seconds / passes,
        "scheduling_share": scheduling.scheduling_share,
        "worst_wait_passes": scheduling.worst_wait_passes,
        "worst_wait_seconds": scheduling.worst_wait_seconds,
    }
    return facts, tuple(found[number] for number in range(len(prompts)))


def _ratios(runs: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    by_contender = {
        (run["budget"], run["link"], run["batch_size"], run["way"], run["scheduler"], run["group_size"]): run
        for run in runs
    }
    ratios: dict[str, float | None] = {}
    for (budget, link, size, way, name, _), run in by_contender.items():
        cell = (budget, link, size)
        if way == "together" and name == WAVES:
            apart = by_contender[(*cell, "apart", WAVES, None)]
            ratios[f"together_{budget}_{link}_{size}"] = ratio(run["tokens_per_second"], apart["tokens_per_second"])
        plain = next((one for key, one in by_contender.items() if key[:5] == (*cell, "together", OFF)), None)
        if way == "together" and name != OFF and plain is not None:
            for figure, key in (("speed", "tokens_per_second"), ("bytes", "bytes_per_token")):
                ratios[f"{figure}_{name}_{budget}_{link}_{size}"] = ratio(run[key], plain[key])
    return ratios
