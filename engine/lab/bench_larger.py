"""A model several times larger than the memory its process may use: does it load, answer, and keep to its plan?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from engine.checkpoint.catalog import resolve_model
from engine.errors import InvalidSetting
from engine.hardware.machine import usable_cpu_threads
from engine.hardware.memory_plan import MIB, parse_bytes
from engine.lab.contender_process import ContenderProcess
from engine.lab.memory_cage import MemoryCage
from engine.lab.peer_prompts import PeerPrompts
from engine.lab.prompts import DEFAULT_PROMPTS
from engine.lab.report import make_report
from engine.lab.widened_model import widen_experts
from engine.paths import models_dir

CONTENDER = "engine.lab.peer_expertflow"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LargerSettings:
    """Experts of `model` `times` as wide; at most `memory` for the process, page cache included."""

    model: str = "demo"
    times: int = 3
    memory: str = "2GiB"
    budget: str = "auto"
    policy: str = "lru-per-layer"
    tokens: int = 16
    answers: int = 2
    keep: bool = False


def run_bench_larger(settings: LargerSettings, on_progress: Progress) -> dict[str, Any]:
    """Raises InvalidSetting where memory cannot be limited, ContenderFailed when the process is killed for memory."""
    path = resolve_model(settings.model, on_progress)
    wide = models_dir() / f"{path.name}-{settings.times}-times-as-wide"
    prompts = PeerPrompts(path, DEFAULT_PROMPTS[: settings.answers]).chats
    try:
        widen_experts(path, wide, settings.times, on_progress)
        run = _limited(settings, str(wide), prompts, on_progress)
    finally:
        if not settings.keep:
            shutil.rmtree(wide, ignore_errors=True)
    on_progress("Asking the model it was made from", 0, 0)
    ids = run.pop("ids")
    return make_report(
        [run],
        {"model_over_memory": run["model_bytes"] / run["memory_limit_bytes"]},
        model=str(path),
        settings=asdict(settings),
        within_plan=run["peak_bytes"] <= run["planned_bytes"] + max(run["planned_bytes"] // 10, 64 * MIB),
        identical_ids=ids == _answers_of_original(str(path), prompts, settings.tokens),
    )


def _limited(settings: LargerSettings, path: str, prompts: list[list[int]], on_progress: Progress) -> dict[str, Any]:
    cage = MemoryCage.create("larger")
    if cage is None:
        raise InvalidSetting(
            "This user may not make memory control groups, so no process can be held to a limit.",
            "Run it as root, or in a container with the memory controller.",
        )
    limit_bytes, threads = parse_bytes(settings.memory), usable_cpu_threads()
    with ContenderProcess(CONTENDER, threads, cage) as ours:
        cage.limit(limit_bytes)
        on_progress(f"Loading within {settings.memory}", 0, 0)
        facts = ours.load(
            path=path,
            threads=threads,
            budget=settings.budget,
            link="disk:direct",
            policy=settings.policy,
            context_length=None,
        )
        answers = []
        for number, prompt in enumerate(prompts):
            on_progress(f"Answer within {settings.memory}", number, len(prompts))
            answers.append(ours.answer(prompt, settings.tokens))
        group_peak = cage.peak_bytes()
    decoded = sum(len(answer["ids"]) - 1 for answer in answers)
    return {
        "policy": settings.policy,
        "memory_limit_bytes": limit_bytes,
        "model_bytes": facts["model_bytes_total"],
        "planned_bytes": facts["near_bytes_total"],
        "slots": facts["slots"],
        "peak_bytes": answers[-1]["peak_bytes"],
        "peak_group_bytes": group_peak,
        "load_seconds": facts["load_seconds"],
        "tokens_per_second": decoded / sum(answer["decode_seconds"] for answer in answers),
        "hit_rate": sum(answer["hit_rate"] for answer in answers) / len(answers),
        "bytes_per_token": sum(answer["bytes_total"] for answer in answers) // max(decoded, 1),
        "ids": [answer["ids"] for answer in answers],
    }


def _answers_of_original(path: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    threads = usable_cpu_threads()
    with ContenderProcess(CONTENDER, threads) as original:
        original.load(path=path, threads=threads, budget="100%", link="disk", context_length=None)
        return [original.answer(prompt, tokens)["ids"] for prompt in prompts]
