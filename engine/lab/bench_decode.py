"""Decoding speed by budget, policy and link, each beside the least time that budget allows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from engine.cache.policy_choice import PLAIN_POLICIES, PREDICTIVE
from engine.checkpoint.catalog import resolve_model
from engine.checkpoint.expert_index import ExpertIndex
from engine.errors import EngineError, NotEnoughMemory
from engine.hardware.disk_probe import probe_file
from engine.hardware.machine import usable_cpu_threads
from engine.lab.belady import belady_bytes
from engine.lab.contender_process import ContenderProcess
from engine.lab.decode_measure import DecodeMeasurement, measure_decoding
from engine.lab.page_cache import weight_files
from engine.lab.peer_prompts import PeerPrompts
from engine.lab.prompts import DEFAULT_PROMPTS, WARM_UP_CHAT, Messages
from engine.lab.report import fastest_plain, make_report, median_run, ratio

if TYPE_CHECKING:
    from engine import Engine
    from engine.card_emulation import CardEmulation

ENGINE_LINKS = {"disk": "disk:direct", "disk:buffered": "disk"}  # cold is the rule here, RAM must not pose as disk
WARM_UP_LIMIT = 4  # answers, until nothing is missing any more, before the resident speed is measured

Progress = Callable[[str, int, int], None]
Case = tuple[str, str, str]  # link, policy, budget


@dataclass(frozen=True)
class DecodeSettings:
    """What to compare; `tokens` is the most of each answer, the first of which belongs to its prefill."""

    model: str = "demo"
    budgets: tuple[str, ...] = ("15%", "25%", "35%", "45%", "60%")
    policies: tuple[str, ...] = PLAIN_POLICIES
    links: tuple[str, ...] = ("disk",)
    tokens: int = 33
    repeats: int = 2
    prompts: tuple[Messages, ...] = DEFAULT_PROMPTS[:2]
    with_stock: bool = True


def run_bench_decode(settings: DecodeSettings, on_progress: Progress) -> dict[str, Any]:
    """The report of design section 9. Raises EngineError; a contender that cannot run is named in `notes`.

    Runs over an emulated card's link are in the card's time, all their seconds too, and say so (`emulated`).
    """
    path = resolve_model(settings.model, on_progress)
    bench = _Bench(settings, path, on_progress)
    for _ in range(settings.repeats):
        bench.measure_resident()
        bench.measure_cases()
    bench.measure_stock()
    return bench.report()


class _Bench:
    """Collects repeats; every engine is closed before the next is loaded."""

    def __init__(self, settings: DecodeSettings, path: Path, on_progress: Progress) -> None:
        self._settings, self._path, self._on_progress = settings, path, on_progress
        self._chats = list(settings.prompts)
        self._expert_bytes = ExpertIndex.from_checkpoint(path).expert_bytes  # what a miss moves
        self._cases: dict[Case, list[tuple[DecodeMeasurement, int]]] = defaultdict(list)
        self._resident: list[DecodeMeasurement] = []
        self._disk_speeds: list[float] = []
        self._emulations: dict[str, CardEmulation] = {}  # by link
        self._stock_per_second: float | None = None
        self._prompt_ids = PeerPrompts(path, settings.prompts).chats
        self._notes: list[str] = []
        self._done = 0

    def measure_resident(self) -> None:
        """How fast the computation alone is: every expert in memory."""
        try:
            with self._load("100%", "lru", "disk:buffered") as engine:
                for _ in range(WARM_UP_LIMIT):
                    if not measure_decoding(engine, self._chats, self._settings.tokens).misses:
                        break
                self._resident.append(measure_decoding(engine, self._chats, self._settings.tokens))
        except NotEnoughMemory as error:
            self._note(f"No resident run, so bounds are those of the link alone: {error.cause}")
        self._step("everything resident")

    def measure_cases(self) -> None:
        """Every link, policy and budget once."""
        for link in self._settings.links:
            if link.startswith("disk"):
                self._disk_speeds.append(self._probe_disk())
            for policy in self._settings.policies:
                with self._load(self._settings.budgets[0], policy, link) as engine:
                    if emulation := engine.snapshot().emulation:
                        self._emulations[link] = emulation
                    for budget in self._settings.budgets:
                        plan = engine.resize(budget)
                        measure_decoding(engine, [WARM_UP_CHAT], self._settings.tokens)
                        measured = measure_decoding(engine, self._chats, self._settings.tokens)
                        self._cases[link, policy, budget].append((measured, plan.slots))
                        self._step(f"{budget} {policy} over {link}")

    def measure_stock(self) -> None:
        """Stock transformers on the same prompts, because slow computing flatters efficiency."""
        from engine.lab.peer_choice import choose_implementation

        if not self._settings.with_stock:
            return
        threads = usable_cpu_threads()
        try:
            with ContenderProcess("engine.lab.peer_transformers", threads) as stock:
                stock.load(path=str(self._path), threads=threads)
                best = choose_implementation(stock, self._prompt_ids[0]).for_decoding
                answers = [
                    stock.answer(ids, self._settings.tokens, implementation=best)
                    for _ in range(self._settings.repeats)
                    for ids in self._prompt_ids
                ]
        except EngineError as error:
            self._note(f"Stock transformers could not be measured: {error.cause}")
            return
        seconds = sum(answer["decode_seconds"] for answer in answers)
        self._stock_per_second = sum(len(answer["ids"]) - 1 for answer in answers) / seconds
        self._step("stock transformers")

    def report(self) -> dict[str, Any]:
        """Medians over repeats, one run for each case."""
        runs = [median_run(list(self._runs(case))) for case in self._cases]
        resident_per_second = median_run([_speed(run) for run in self._resident]) if self._resident else {}
        ours = resident_per_second.get("tokens_per_second")
        every = [measured.ids for repeats in self._cases.values() for measured, _ in repeats]
        every += [measured.ids for measured in self._resident]
        ratios = {
            "resident_decode_over_transformers": ratio(ours, self._stock_per_second),
            **_best_plain(runs),
            **_predictive_over_best_plain(runs),
        }
        return make_report(
            runs,
            ratios,
            model=str(self._path),
            settings=asdict(self._settings) | {"prompts": len(self._chats)},
            resident_tokens_per_second=ours,
            transformers_tokens_per_second=self._stock_per_second,
            disk_bytes_per_second=max(self._disk_speeds, default=None),
            emulations={link: emulation.to_dict() for link, emulation in self._emulations.items()},
            identical_ids=len(set(every)) <= 1,
            notes=[*self._notes, *(note for emulation in self._emulations.values() for note in emulation.notes)],
        )

    def _runs(self, case: Case) -> Iterator[dict[str, Any]]:
        link, policy, budget = case
        emulation = self._emulations.get(link)
        dilation = emulation.dilation if emulation else 1.0
        compute_seconds = min((run.in_time(dilation).wall_seconds for run in self._resident), default=None)
        bandwidth = self._bandwidth(link)
        for measured_here, slots in self._cases[case]:
            measured = measured_here.in_time(dilation)
            least_bytes = belady_bytes(measured.routing, slots, self._expert_bytes)
            bound_seconds = max(compute_seconds or 0.0, least_bytes / bandwidth)
            yield {
                "policy": policy,
                "budget": budget,
                "link": link,
                **({"emulated": emulation.label, "time_dilation": dilation} if emulation else {}),
                "slots": slots,
                "tokens": measured.tokens,
                "tokens_per_second": measured.tokens_per_second,
                **measured.rates(),
                "stall_seconds": measured.stall_seconds,
                "prediction_seconds": measured.prediction_seconds,
                **measured.bytes_moved,
                "peak_near_bytes": measured.peak_near_bytes,
                "peak_rss_bytes": measured.peak_rss_bytes,
                "actual_seconds": measured.wall_seconds,
                "compute_seconds": compute_seconds,
                "belady_bytes": least_bytes,
                "link_bytes_per_second": bandwidth,
                "bound_seconds": bound_seconds,
                "efficiency": bound_seconds / measured.wall_seconds,
            }

    def _bandwidth(self, link: str) -> float:
        """Stated for an emulated link or card; for a disk the most that was measured beside these runs."""
        from engine.cache.timed_transfers import EmulatedSpeed

        if link in self._emulations:
            return self._emulations[link].card.link_bytes_per_second
        if link.startswith("emulated:"):
            return EmulatedSpeed.parse(link).bytes_per_second
        return max(self._disk_speeds)

    def _probe_disk(self) -> float:
        largest = max(weight_files(self._path), key=lambda file: file.stat().st_size)
        return probe_file(largest).best_bytes_per_second

    def _load(self, budget: str, policy: str, link: str) -> Engine:
        from engine import Engine

        asked = ENGINE_LINKS.get(link, link)
        engine = Engine.load(self._path, budget=budget, policy=policy, link=asked)
        if asked == "disk:direct" and engine.snapshot().link != asked:
            self._note("This file system cannot be read past the page cache: what is called disk may be RAM.")
        return engine

    def _note(self, sentence: str) -> None:
        if sentence not in self._notes:
            self._notes.append(sentence)

    def _step(self, what: str) -> None:
        settings = self._settings
        cases = len(settings.links) * len(settings.policies) * len(settings.budgets)
        self._done += 1
        self._on_progress(f"Measured {what}", self._done, settings.repeats * (1 + cases) + settings.with_stock)


def _speed(measured: DecodeMeasurement) -> dict[str, float]:
    return {"tokens_per_second": measured.tokens_per_second}


def _best_plain(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Efficiency of the best plain cache at each budget and link."""
    best: dict[str, float] = {}
    for run in runs:
        name = f"best_efficiency_{run['link']}_{run['budget']}"
        if run["policy"] in PLAIN_POLICIES:
            best[name] = max(best.get(name, 0.0), run["efficiency"])
    return best


def _predictive_over_best_plain(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Speed and bytes of the predictive policy over those of the fastest plain cache, at each budget and link.

    Speeds are compared repeat by repeat, those taken in turn with each other: the median, the least and the most.
    """
    ratios: dict[str, float] = {}
    for run in runs:
        best = fastest_plain(runs, run["budget"], run["link"])
        if run["policy"] != PREDICTIVE or best is None:
            continue
        name = f"{run['link']}_{run['budget']}"
        pairs = zip(run["tokens_per_second_all"], best["tokens_per_second_all"], strict=True)
        quotients = sorted(ours / theirs for ours, theirs in pairs)
        ratios[f"predictive_speed_over_best_plain_{name}"] = median(quotients)
        ratios[f"predictive_speed_over_best_plain_least_{name}"] = quotients[0]
        ratios[f"predictive_speed_over_best_plain_most_{name}"] = quotients[-1]
        if best["bytes_total"]:
            ratios[f"predictive_bytes_over_best_plain_{name}"] = run["bytes_total"] / best["bytes_total"]
    return ratios
