"""One command for who has a card: this engine beside what else runs the same weights on it, budget by budget.

Contenders would take each other's memory, so each runs alone, one after the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.catalog import resolve_model
from engine.checkpoint.expert_index import ExpertIndex
from engine.errors import DeviceNotAvailable, EngineError
from engine.hardware.available_memory import available_ram_bytes
from engine.hardware.device import ChosenDevice, choose_device
from engine.hardware.gpu_profiles import profile_named
from engine.hardware.gpus import survey_gpus
from engine.hardware.machine import usable_cpu_threads
from engine.hardware.memory_plan import MIB, format_bytes
from engine.hardware.torch_cuda import ask_torch
from engine.lab.contender_process import ContenderProcess
from engine.lab.llama_server import LlamaServer, why_not_llama
from engine.lab.peer_choice import choose_implementation
from engine.lab.peer_prompts import PeerPrompts
from engine.lab.prompts import DEFAULT_PROMPTS, Messages
from engine.lab.report import make_report, median_ratio, median_run
from engine.loading import DEFAULT_CONTEXT_LENGTH

Progress = Callable[[str, int, int], None]
Answer = dict[str, Any]

OURS, STOCK, OFFLOAD, LLAMA = "expertflow", "transformers", "accelerate offload", "llama.cpp"
HELD = ("near_bytes_total", "slots", "experts_total", "policy")  # facts of ours that belong beside its speed
ROOM_BESIDE_WEIGHTS = 1.1  # stock transformers also needs its context and scratch on the card
RAM_LEFT = 0.8  # of what is free may be accelerate's: the rest is for loading


@dataclass(frozen=True)
class GpuBenchSettings:
    """What to measure. `emulate` names a card: then this engine runs alone, on the processor, in that card's time."""

    model: str = "demo"
    budgets: tuple[str, ...] = ("auto", "25%", "50%")
    tokens: int = 64
    offload_tokens: int = 16
    repeats: int = 3
    device: str = "cuda"
    emulate: str | None = None
    gguf: str | None = None
    prompts: tuple[Messages, ...] = DEFAULT_PROMPTS[:1]


def run_bench_gpu(settings: GpuBenchSettings, on_progress: Progress) -> dict[str, Any]:
    """The report, in the shape of the other benches. A peer that cannot run leaves None and a note.

    Raises DeviceNotAvailable without a card that PyTorch computes on, and EngineError where this engine cannot run.
    """
    card = None if settings.emulate else the_card(settings.device)
    link = "auto" if settings.emulate is None else f"emulated:{profile_named(settings.emulate).name}"
    bench = _Bench(settings, resolve_model(settings.model, on_progress), card, link, on_progress)
    for budget in settings.budgets:
        bench.ours(budget)
        if card is not None:
            bench.attempt(OFFLOAD, lambda budget=budget: bench.offload(budget))  # type: ignore[misc]
            bench.attempt(LLAMA, lambda budget=budget: bench.llama(budget))  # type: ignore[misc]
    if card is not None:
        bench.attempt(STOCK, bench.stock)
    return bench.report()


def the_card(device: str) -> ChosenDevice:
    """The card to measure on. Raises DeviceNotAvailable in one sentence, with the way to try without."""
    try:
        return choose_device(device, survey_gpus(), ask_torch())
    except DeviceNotAvailable as error:
        raise DeviceNotAvailable(
            error.cause, f"{error.remedy} To see what a card would do, run `bench gpu --emulate 4060`."
        ) from error


class _Bench:
    def __init__(
        self, settings: GpuBenchSettings, path: Path, card: ChosenDevice | None, link: str, on_progress: Progress
    ) -> None:
        self._settings, self._path, self._card, self._link = settings, path, card, link
        self._on_progress = on_progress
        self._threads = usable_cpu_threads()
        self._prompts = PeerPrompts(path, settings.prompts).chats
        self._answers: dict[tuple[str, str], list[Answer]] = {}  # by budget and contender
        self._facts: dict[str, dict[str, Any]] = {}  # of ours, by budget
        self._others: dict[str, Any] = {}
        self._notes: list[str] = []

    def attempt(self, name: str, measure: Callable[[], None]) -> None:
        """A peer that cannot run costs its ratio, not the report."""
        try:
            measure()
        except EngineError as error:
            self._note(f"{name}: {error.cause} {error.remedy}")

    def ours(self, budget: str) -> None:
        device = self._card.torch_name if self._card else "auto"
        with self._process("peer_expertflow", f"{OURS} at {budget}") as process:
            facts = process.load(
                **self._common(),
                budget=budget,
                link=self._link,
                device=device,
                context_length=self._context_length if self._context_length > DEFAULT_CONTEXT_LENGTH else None,
            )
            self._facts[budget] = facts
            for note in facts.pop("emulation_notes"):
                self._note(note)
            answers = self._measure(process, self._settings.tokens)
        self._answers[budget, OURS] = [_in_card_time(answer, facts["emulation"]) for answer in answers]

    def offload(self, budget: str) -> None:
        """Accelerate with as much of the card's memory as ours took."""
        assert self._card is not None
        with (
            tempfile.TemporaryDirectory(prefix=".offload-", dir=self._path.parent) as folder,
            self._process("peer_accelerate_auto", f"{OFFLOAD} at {budget}") as process,
        ):
            self._others[f"{OFFLOAD} {budget}"] = process.load(
                **self._common(),
                device=self._card.torch_name,
                card_bytes=self._facts[budget]["near_bytes_total"],
                ram_bytes=int(RAM_LEFT * available_ram_bytes()),
                offload_folder=folder,
            )
            self._answers[budget, OFFLOAD] = self._measure(process, self._settings.offload_tokens)

    def llama(self, budget: str) -> None:
        """llama.cpp with a cache of experts as large as ours; what else it holds on the card comes on top."""
        if reason := why_not_llama(self._settings.gguf):
            self._note(reason)
            return
        self._on_progress(f"Measuring {LLAMA} at {budget}", 0, 0)
        assert self._settings.gguf is not None
        with LlamaServer() as server:
            self._others[f"{LLAMA} {budget}"] = server.load(
                gguf=self._settings.gguf,
                cache_mib=self._facts[budget]["near_bytes_experts"] // MIB,
                context_length=max(self._context_length, DEFAULT_CONTEXT_LENGTH),
                threads=self._threads,
            )
            self._answers[budget, LLAMA] = self._measure(server, self._settings.tokens)

    def stock(self) -> None:
        """Stock transformers with everything on the card, where that fits."""
        assert self._card is not None
        needed_bytes = int(ROOM_BESIDE_WEIGHTS * ExpertIndex.from_checkpoint(self._path).total_bytes)
        free_bytes = self._card.vram_free_bytes or self._card.vram_total_bytes
        if free_bytes is not None and needed_bytes > free_bytes:
            self._note(
                f"{STOCK} is left out: the whole model needs about {format_bytes(needed_bytes)} and "
                f"{format_bytes(free_bytes)} of the card are free."
            )
            return
        with self._process("peer_transformers", STOCK) as process:
            facts = process.load(**self._common(), device=self._card.torch_name)
            best = choose_implementation(process, self._prompts[0])
            self._others[STOCK] = facts | asdict(best)
            self._answers["100%", STOCK] = self._measure(
                process, self._settings.tokens, implementation=best.for_decoding
            )

    def report(self) -> dict[str, Any]:
        """Runs and the ratios of ours over each peer, budget by budget."""
        ratios = {
            f"{budget}_decode_over_{peer.replace(' ', '_').replace('.', '_')}": self._ratio(budget, peer)
            for budget in self._settings.budgets
            for peer in ((STOCK, OFFLOAD, LLAMA) if self._card else ())
        }
        emulation = next((facts["emulation"] for facts in self._facts.values()), None)
        runs = [self._run(budget, contender, answers) for (budget, contender), answers in self._answers.items()]
        return make_report(
            runs,
            ratios,
            model=str(self._path),
            device=self._card.to_dict() if self._card else None,
            emulation=emulation,
            settings=asdict(self._settings) | {"prompts": len(self._prompts)},
            identical_ids=self._identical_ids(),
            contenders={f"{OURS} {budget}": facts for budget, facts in self._facts.items()} | self._others,
            notes=self._notes,
        )

    @property
    def _context_length(self) -> int:
        return max(map(len, self._prompts)) + self._settings.tokens

    def _common(self) -> dict[str, Any]:
        return {"path": str(self._path), "threads": self._threads}

    @contextmanager
    def _process(self, module: str, words: str) -> Iterator[ContenderProcess]:
        self._on_progress(f"Measuring {words}", 0, 0)
        with ContenderProcess(f"engine.lab.{module}", self._threads) as process:
            yield process

    def _measure(self, process: ContenderProcess | LlamaServer, tokens: int, **settings: Any) -> list[Answer]:
        process.answer(self._prompts[0], tokens, **settings)  # caches fill, libraries set themselves up
        return [
            process.answer(prompt, tokens, **settings)
            for _ in range(self._settings.repeats)
            for prompt in self._prompts
        ]

    def _run(self, budget: str, contender: str, answers: list[Answer]) -> dict[str, Any]:
        repeats = []
        for answer in answers:
            numbers = {name: value for name, value in answer.items() if name != "ids"}
            repeats.append({"tokens": len(answer["ids"]), "tokens_per_second": _decoded_per_second(answer)} | numbers)
        facts = self._facts.get(budget, {}) if contender == OURS else {}
        held: dict[str, Any] = {name: facts[name] for name in HELD if name in facts}
        return {"what": f"decode at {budget}", "contender": contender, "budget": budget, **held, **median_run(repeats)}

    def _ratio(self, budget: str, peer: str) -> float | None:
        theirs = self._answers.get(("100%" if peer == STOCK else budget, peer))
        if theirs is None:
            return None
        ours = self._answers[budget, OURS]
        return median_ratio(map(_decoded_per_second, ours), map(_decoded_per_second, theirs))

    def _identical_ids(self) -> bool:
        """Whether contenders with the checkpoint's own weights wrote the same tokens, as far as each went."""
        first = self._answers[self._settings.budgets[0], OURS]
        return all(
            _agree(one["ids"], other["ids"])
            for (_, contender), answers in self._answers.items()
            if contender != LLAMA
            for one, other in zip(first, answers, strict=True)
        )

    def _note(self, sentence: str) -> None:
        if sentence not in self._notes:
            self._notes.append(sentence)


def _in_card_time(answer: Answer, emulation: dict[str, Any] | None) -> Answer:
    """Decoding in the emulated card's time. Reading the prompt, bound by other things, stays in this machine's."""
    if emulation is None:
        return answer
    dilation = emulation["dilation"]
    slower = {name: answer[name] / dilation for name in ("decode_seconds", "stall_seconds")}
    return answer | slower | {"emulated": emulation["label"], "time_dilation": dilation}


def _decoded_per_second(answer: Answer) -> float:
    steps = len(answer["ids"]) - 1
    return steps / answer["decode_seconds"] if steps > 0 and answer["decode_seconds"] else 0.0


def _agree(one: list[int], other: list[int]) -> bool:
    both = min(len(one), len(other))
    return one[:both] == other[:both]
