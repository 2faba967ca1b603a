"""What fewer bits cost and give: perplexity, bytes and decoding speed at native, int8 and NF4 experts, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from engine.cache.expert_cache import ExpertCache
from engine.cache.links.disk import DiskLink
from engine.cache.policies import LRU
from engine.checkpoint.catalog import resolve_model
from engine.checkpoint.dense_model import OpenedCheckpoint, open_checkpoint, read_dense
from engine.checkpoint.quantised import PRECISIONS, QuantisedIndex
from engine.checkpoint.quantised.quality import MeasuredQuality, record_quality
from engine.errors import InvalidSetting
from engine.hardware.available_memory import available_ram_bytes
from engine.hardware.memory_plan import make_plan
from engine.lab.bench_decode import ENGINE_LINKS
from engine.lab.bench_model import perplexity
from engine.lab.decode_measure import measure_decoding
from engine.lab.held_out import Passage, load_chats, load_documentation
from engine.lab.prompts import DEFAULT_PROMPTS, WARM_UP_CHAT, Messages
from engine.lab.report import make_report, median_ratio, median_run
from engine.loading import at_precision, context_for, load_tokenizer, make_experts
from engine.model import experts as experts_function
from engine.model.footprint import footprint

Progress = Callable[[str, int, int], None]
NATIVE = "native"
CHAT_MARK = "<|im_start|>"  # the held-out chats are written in this template


@dataclass(frozen=True)
class PrecisionSettings:
    """`budget` is what native experts get; the others get the same bytes, so that they hold more experts.

    `every`: of the held-out passages one in so many is read. No speed is measured with `repeats` 0.
    """

    model: str = "demo"
    budget: str = "25%"
    link: str = "disk"
    tokens: int = 33
    repeats: int = 3
    every: int = 1
    prompts: tuple[Messages, ...] = DEFAULT_PROMPTS[:2]


def run_bench_precision(settings: PrecisionSettings, on_progress: Progress) -> dict[str, Any]:
    """The report of design section 9; perplexities are also kept with the copies, for the plan to tell.

    Raises EngineError; InvalidSetting for a model without a tokenizer.
    """
    path = resolve_model(settings.model, on_progress)
    opened = {name: at_precision(open_checkpoint(path), name) for name in (NATIVE, *PRECISIONS)}
    texts = held_out(path, settings.every)
    perplexities = {}
    for name, checkpoint in opened.items():
        make_experts(checkpoint, on_progress)
        perplexities[name] = _perplexities(checkpoint, texts, name, on_progress)
    speeds = _speeds(settings, path, opened[NATIVE], on_progress)
    counted = {name: sum(sum(passage.counted) for passage in passages) for name, passages in texts.items()}
    runs: list[dict[str, Any]] = []
    ratios: dict[str, float | None] = {}
    for name, checkpoint in opened.items():
        runs.append(
            {
                "precision": name,
                "perplexity": perplexities[name],
                "expert_bytes": checkpoint.index.expert_bytes,
                "total_expert_bytes": checkpoint.index.total_expert_bytes,
                **(median_run(speeds[name]) if speeds else {}),
            }
        )
        if isinstance(checkpoint.index, QuantisedIndex):
            over_native = {text: value / perplexities[NATIVE][text] for text, value in perplexities[name].items()}
            record_quality(checkpoint.index, MeasuredQuality(over_native, counted))
            ratios |= {f"perplexity_{name}_over_native_{text}": value for text, value in over_native.items()}
            ratios |= _against_native(name, opened, speeds)
    return make_report(runs, ratios, model=str(path), settings=_plain(settings), counted_tokens=counted)


def held_out(path: Path, every: int) -> dict[str, list[Passage]]:
    """The shipped texts in this model's tokens; chats only for models that know their template."""
    tokenizer: PreTrainedTokenizerBase | None = load_tokenizer(path)
    if tokenizer is None:
        raise InvalidSetting(f"{path} has no tokenizer to read texts with.", "Add the model's tokenizer files.")
    texts = {"documentation": load_documentation(tokenizer)[::every]}
    if CHAT_MARK in tokenizer.get_vocab():
        texts = {"chats": load_chats(tokenizer)[::every]} | texts
    return texts


def _perplexities(
    checkpoint: OpenedCheckpoint, texts: dict[str, list[Passage]], name: str, on_progress: Progress
) -> dict[str, float]:
    """Every text read by this engine's own experts function through a cache, in the memory that there is."""
    longest = max(len(passage.ids) for passages in texts.values() for passage in passages)
    needs = footprint(checkpoint.config, checkpoint.index, context_for(checkpoint.config, longest))
    plan = make_plan(needs, "auto", available_ram_bytes())
    dense = read_dense(checkpoint, on_progress)
    cache = ExpertCache(DiskLink(dense.index), LRU(), dense.index.experts_per_layer, plan.slots)
    try:
        experts_function.attach(dense.experts_modules, cache)
        return {
            text: perplexity(dense.model, passages, f"Perplexity of {name} on {text}", on_progress)
            for text, passages in texts.items()
        }
    finally:
        cache.close()


def _speeds(
    settings: PrecisionSettings, path: Path, native: OpenedCheckpoint, on_progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """Decoding at the same number of bytes, the precisions in turn."""
    needs = footprint(native.config, native.index, context_for(native.config, None))
    budget_bytes = make_plan(needs, settings.budget, available_ram_bytes()).near_bytes_total
    measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for repeat in range(settings.repeats):
        for name in (NATIVE, *PRECISIONS):
            on_progress(f"Decoding with {name} experts", repeat, settings.repeats)
            measured[name].append(_decode(settings, path, name, budget_bytes))
    return measured


def _decode(settings: PrecisionSettings, path: Path, precision: str, budget_bytes: int) -> dict[str, Any]:
    from engine import Engine

    link = ENGINE_LINKS.get(settings.link, settings.link)
    with Engine.load(path, budget=budget_bytes, precision=precision, policy="lru", link=link) as engine:
        measure_decoding(engine, [WARM_UP_CHAT], settings.tokens)
        run = measure_decoding(engine, list(settings.prompts), settings.tokens)
        return {
            "link": settings.link,
            "budget_bytes": budget_bytes,
            "slots": engine.plan.slots,
            "tokens_per_second": run.tokens_per_second,
            **run.rates(),
            "stall_seconds": run.stall_seconds,
            "bytes_total": run.bytes_moved["bytes_total"],
            "peak_near_bytes": run.peak_near_bytes,
            "peak_rss_bytes": run.peak_rss_bytes,
        }


def _against_native(
    name: str, opened: dict[str, OpenedCheckpoint], speeds: dict[str, list[dict[str, Any]]]
) -> dict[str, float | None]:
    ratios: dict[str, float | None] = {
        f"expert_bytes_{name}_over_native": opened[name].index.expert_bytes / opened[NATIVE].index.expert_bytes
    }
    if speeds:
        pair = [[run["tokens_per_second"] for run in speeds[which]] for which in (name, NATIVE)]
        ratios[f"decode_{name}_over_native"] = median_ratio(*pair)
    return ratios


def _plain(settings: PrecisionSettings) -> dict[str, Any]:
    return asdict(replace(settings, prompts=())) | {"prompts": len(settings.prompts)}
