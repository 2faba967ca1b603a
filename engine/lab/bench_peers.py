"""This engine beside what else runs the same weights here, each in a process of its own, taking turns."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.catalog import resolve_model
from engine.errors import EngineError
from engine.hardware.machine import usable_cpu_threads
from engine.hardware.memory_plan import MIB, parse_bytes
from engine.lab.contender_process import ContenderFailed, ContenderProcess, last_words, surroundings
from engine.lab.memory_cage import MemoryCage
from engine.lab.page_cache import drop_pages, weight_files
from engine.lab.peer_choice import choose_implementation
from engine.lab.peer_prompts import PeerPrompts
from engine.lab.prompts import DEFAULT_PROMPTS, Messages
from engine.lab.report import make_report, median_ratio, median_run
from engine.loading import DEFAULT_CONTEXT_LENGTH

Progress = Callable[[str, int, int], None]
Answer = dict[str, Any]

LIMIT_STEP_BYTES = 64 * MIB
PEER_NEEDS_BYTES = 512 * MIB  # beside what our plan holds: interpreter and libraries of either contender
NO_CAGE = (
    "No memory control group can be made here, so nothing limits the page cache: the weight files' pages are "
    "dropped after every token instead."
)
CAGED = "Each disk contender ran in a memory control group of its own, limited after loading; page cache counts."


@dataclass(frozen=True)
class PeersSettings:
    """What to measure. `disk_tokens` is low because the peer reads every expert for every token."""

    model: str = "demo"
    tokens: int = 48
    repeats: int = 3
    prefill_tokens: int = 1000
    disk_tokens: int = 8
    disk_repeats: int = 3
    budget: str = "25%"
    memory_limit: str = "auto"
    prompts: tuple[Messages, ...] = DEFAULT_PROMPTS[:1]
    with_disk: bool = True
    with_token_time: bool = True


def run_bench_peers(settings: PeersSettings, on_progress: Progress) -> dict[str, Any]:
    """Runs, and the ratio of each pair. A pair that cannot run leaves None and a note.

    Raises EngineError when no pair runs.
    """
    path = resolve_model(settings.model, on_progress)
    bench = _Bench(settings, path, on_progress)
    bench.attempt(bench.resident_pair)
    if settings.with_disk:
        bench.attempt(bench.disk_pair)
    if settings.with_token_time:
        bench.attempt(bench.token_time)
    return bench.report()


class _Bench:
    def __init__(self, settings: PeersSettings, path: Path, on_progress: Progress) -> None:
        self._settings, self._path, self._on_progress = settings, path, on_progress
        self._threads = usable_cpu_threads()
        self._prompts = PeerPrompts(path, settings.prompts)
        self._answers: dict[tuple[str, str], list[Answer]] = defaultdict(list)
        self._facts: dict[str, Any] = {"threads": self._threads}
        self._notes: list[str] = []
        self._failures: list[EngineError] = []

    def attempt(self, pair: Callable[[], None]) -> None:
        """A contender that cannot run costs its ratio, not the whole report."""
        try:
            pair()
        except EngineError as error:
            self._failures.append(error)
            self._notes.append(f"{error.cause} {error.remedy}")

    def resident_pair(self) -> None:
        """Everything in memory: this engine and stock transformers in float32."""
        with ExitStack() as stack:
            ours = stack.enter_context(ContenderProcess("engine.lab.peer_expertflow", self._threads))
            stock = stack.enter_context(ContenderProcess("engine.lab.peer_transformers", self._threads))
            self._say("Loading the model twice")
            self._facts["expertflow_resident"] = self._load_ours(ours, "100%", "disk")
            self._facts["transformers"] = stock.load(path=str(self._path), threads=self._threads)
            self._say("Choosing transformers' best experts implementation")
            best = choose_implementation(stock, self._prompts.chats[0], self._long_prompt(0))
            self._facts["transformers"] |= asdict(best)
            ours.answer(self._long_prompt(0), 2)
            ours.answer(self._prompts.chats[0], self._settings.tokens)
            for repeat in range(self._settings.repeats):
                self._say(f"Everything resident, round {repeat + 1} of {self._settings.repeats}")
                for prompt in self._prompts.chats:
                    self._turn("resident_decode", ours, stock, prompt, self._settings.tokens, best.for_decoding)
                self._turn("resident_prefill", ours, stock, self._long_prompt(repeat + 1), 1, best.for_prefill)

    def disk_pair(self) -> None:
        """Part of the experts in memory, the rest on a cold disk: this engine and accelerate's disk offload."""
        drop_pages(weight_files(self._path))
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".offload-", dir=self._path.parent))
            ours = stack.enter_context(self._caged("engine.lab.peer_expertflow", "ours"))
            peer = stack.enter_context(self._caged("engine.lab.peer_accelerate", "accelerate"))
            self._say("Loading; accelerate writes its own copy of the model")
            facts = self._load_ours(ours, self._settings.budget, "disk:direct")
            self._facts["expertflow_disk"] = facts
            self._facts["accelerate_disk"] = peer.load(
                path=str(self._path), threads=self._threads, offload_folder=folder
            )
            forget = self._limit([ours, peer], facts["near_bytes_total"], [self._path, Path(folder)])
            self._turns_on_disk(ours, peer, forget)

    def token_time(self) -> None:
        """Where a token's time goes with everything resident."""
        self._say("Taking a token's time apart")
        self._facts["token_time"] = take_token_apart(self._path, self._threads)

    def report(self) -> dict[str, Any]:
        """Medians of each contender and medians of the ratios of each pair."""
        if not any(self._answers.values()):
            raise self._failures[0]
        pairs = {
            "resident_decode_over_transformers": ("resident_decode", "transformers", _decoded_per_second),
            "resident_prefill_over_transformers": ("resident_prefill", "transformers", _prefills_per_second),
            "quarter_decode_over_accelerate_disk": ("disk_decode", "accelerate disk offload", _decoded_per_second),
        }
        ratios = {
            name: median_ratio(map(speed, self._answers[what, "expertflow"]), map(speed, self._answers[what, peer]))
            for name, (what, peer, speed) in pairs.items()
        }
        runs = [
            {"what": what, "contender": contender, **median_run([_run(answer) for answer in answers])}
            for (what, contender), answers in self._answers.items()
            if answers
        ]
        settings = asdict(self._settings) | {"prompts": len(self._prompts.chats)}
        return make_report(
            runs,
            ratios,
            model=str(self._path),
            settings=settings,
            identical_ids=self._identical_ids(),
            contenders=self._facts,
            notes=self._notes,
        )

    def _load_ours(self, ours: ContenderProcess, budget: str, link: str) -> dict[str, Any]:
        longest = max(self._settings.prefill_tokens, *map(len, self._prompts.chats)) + self._settings.tokens
        return ours.load(
            path=str(self._path),
            threads=self._threads,
            budget=budget,
            link=link,
            context_length=longest if longest > DEFAULT_CONTEXT_LENGTH else None,
        )

    def _turn(
        self,
        what: str,
        ours: ContenderProcess,
        peer: ContenderProcess,
        prompt: list[int],
        tokens: int,
        implementation: str,
    ) -> None:
        self._answers[what, "expertflow"].append(ours.answer(prompt, tokens))
        answer = peer.answer(prompt, tokens, implementation=implementation)
        self._answers[what, "transformers"].append(answer)

    def _turns_on_disk(self, ours: ContenderProcess, peer: ContenderProcess, forget: list[str]) -> None:
        tokens = self._settings.disk_tokens
        ours.answer(self._prompts.chats[0], self._settings.tokens)
        peer.answer(self._prompts.chats[0], 2)
        for repeat in range(self._settings.disk_repeats):
            self._say(f"Cold disk, round {repeat + 1} of {self._settings.disk_repeats}")
            for prompt in self._prompts.chats:
                self._answers["disk_decode", "expertflow"].append(self._with_peak(ours, ours.answer(prompt, tokens)))
                answer = peer.answer(prompt, tokens, drop_pages=forget)
                self._answers["disk_decode", "accelerate disk offload"].append(self._with_peak(peer, answer))

    def _caged(self, module: str, name: str) -> ContenderProcess:
        return ContenderProcess(module, self._threads, MemoryCage.create(name))

    def _limit(self, contenders: list[ContenderProcess], plan_bytes: int, folders: list[Path]) -> list[str]:
        """Sets the same limit on all; without control groups returns the files to forget between tokens."""
        cages = [contender.cage for contender in contenders]
        if any(cage is None for cage in cages):
            self._notes.append(NO_CAGE)
            self._facts["memory_limit_bytes"] = None
            return [str(file) for folder in folders for file in weight_files(folder)]
        asked = self._settings.memory_limit
        limit_bytes = _default_limit(plan_bytes) if asked == "auto" else parse_bytes(asked)
        for cage in cages:
            assert cage is not None
            cage.limit(limit_bytes)
            cage.reset_peak()
        self._facts["memory_limit_bytes"] = limit_bytes
        self._notes.append(CAGED)
        return []

    def _with_peak(self, contender: ContenderProcess, answer: Answer) -> Answer:
        """Adds the most memory it held since the limit was set, page cache included."""
        peak = contender.cage.peak_bytes() if contender.cage else None
        return answer if peak is None else answer | {"peak_with_page_cache_bytes": peak}

    def _long_prompt(self, start: int) -> list[int]:
        return self._prompts.long(self._settings.prefill_tokens, start)

    def _identical_ids(self) -> bool:
        """Whether contenders that were given the same prompt and length wrote the same tokens."""
        by_what: dict[str, list[list[list[int]]]] = defaultdict(list)
        for (what, _), answers in self._answers.items():
            by_what[what].append([answer["ids"] for answer in answers])
        return all(ids == contenders[0] for contenders in by_what.values() for ids in contenders)

    def _say(self, stage: str) -> None:
        self._on_progress(stage, 0, 0)


def take_token_apart(path: Path, threads: int) -> dict[str, Any]:
    """Milliseconds of each part of a decoding step, measured in a process of its own. Raises ContenderFailed."""
    command = [sys.executable, "-m", "engine.lab.token_time", "--path", str(path), "--threads", str(threads)]
    quick = ["--prefill-tokens", "16", "--rounds", "3"]
    done = subprocess.run([*command, *quick], capture_output=True, text=True, check=False, env=surroundings(threads))
    if done.returncode:
        raise ContenderFailed(f"A token's time could not be taken apart: {last_words(done.stderr)}", "Leave it out.")
    measured: dict[str, Any] = json.loads(done.stdout)
    return {name: measured[name] for name in ("context", "decode", "parts_ms")}


def _default_limit(plan_bytes: int) -> int:
    """What our plan at this budget and either contender's libraries take, rounded up."""
    return -(-(plan_bytes + PEER_NEEDS_BYTES) // LIMIT_STEP_BYTES) * LIMIT_STEP_BYTES


def _decoded_per_second(answer: Answer) -> float:
    steps = len(answer["ids"]) - 1
    return steps / answer["decode_seconds"] if steps else 0.0


def _prefills_per_second(answer: Answer) -> float:
    return 1.0 / float(answer["prefill_seconds"])


def _run(answer: Answer) -> dict[str, Any]:
    """An answer as a run: speeds instead of ids."""
    numbers = {name: value for name, value in answer.items() if name != "ids"}
    speed = _decoded_per_second(answer)
    return {"tokens": len(answer["ids"]), **({"tokens_per_second": speed} if speed else {}), **numbers}
