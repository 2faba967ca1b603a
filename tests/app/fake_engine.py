"""A scripted engine with the real one's surface: fast, no weights, for tests of the page's own logic."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from engine.card_emulation import CardEmulation
from engine.errors import BudgetTooSmall, ContextFull, EngineClosed
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.traced_model import TracedModel
from engine.snapshot import ForesightSnapshot

LAYERS, EXPERTS, TOP_K = 12, 16, 2
SLOT_BYTES = 4_423_680


@dataclass(frozen=True)
class FakePlan:
    slots: int
    budget: str = "auto"
    near_bytes_dense: int = 113_000_000
    near_bytes_kv: int = 94_000_000
    near_bytes_workspace: int = 60_000_000
    experts_total: int = LAYERS * EXPERTS
    slot_bytes: int = SLOT_BYTES
    minimum_slots: int = TOP_K
    model_bytes_total: int = 113_000_000 + LAYERS * EXPERTS * SLOT_BYTES
    margin_bytes: int = 1_000_000_000
    reasons: tuple[str, ...] = ("There is no NVIDIA card, so experts are computed by the processor.",)
    warnings: tuple[str, ...] = ()

    @property
    def near_bytes_experts(self) -> int:
        return self.slots * self.slot_bytes

    @property
    def near_bytes_total(self) -> int:
        return self.near_bytes_dense + self.near_bytes_kv + self.near_bytes_workspace + self.near_bytes_experts

    @property
    def memory_saving(self) -> float:
        return 1 - self.near_bytes_total / self.model_bytes_total


@dataclass(frozen=True)
class FakeStats:
    hits: int = 0
    late: int = 0
    misses: int = 0
    bytes_demand: int = 0
    bytes_correction: int = 0
    bytes_prefetch_used: int = 0
    bytes_prefetch_wasted: int = 0
    stall_seconds: float = 0.0
    tokens: int = 0

    time_dilation = 1.0

    @property
    def decode_steps(self) -> int:
        return self.tokens

    @property
    def decode_seconds(self) -> float:
        return self.stall_seconds + 0.01 * self.tokens

    def __sub__(self, earlier: FakeStats) -> FakeStats:
        return FakeStats(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))

    def to_dict(self) -> dict:
        seen = self.hits + self.late + self.misses
        return {**asdict(self), "hit_rate": self.hits / seen if seen else 0.0}


@dataclass(frozen=True)
class FakeSnapshot:
    stats: FakeStats
    plan: FakePlan
    busy: bool
    running: int
    waiting: int
    phase: str
    prefill_done: int
    prefill_total: int
    context_used: int
    context_length: int
    time_to_first_token_seconds: float | None
    recent_tokens_per_second: float | None
    residency: np.ndarray
    use_counts: np.ndarray
    link: str = "disk"
    policy: str = "lru-per-layer"
    model_name: str = "demo"
    architecture: str = "Mixtral"
    fast_path: str = "The fast decoding path is in use."
    notes: tuple[str, ...] = ()
    foresight: ForesightSnapshot | None = None
    emulation: CardEmulation | None = None


@dataclass(frozen=True)
class FakeEvent:
    text: str
    token_id: int | None
    finish_reason: str | None


class FakeSubmission:
    """Waits for a place, then is written by whoever reads it."""

    prompt_progress = 0, 0

    def __init__(self, engine):
        self._engine, self.events = engine, iter(())
        self.cancelled = threading.Event()

    @property
    def position(self):
        submissions = self._engine._submissions
        before = submissions.index(self) - self._engine.places if self in submissions else -1
        return before if before >= 0 else None

    def cancel(self):
        self.cancelled.set()

    def __iter__(self):
        try:
            while self.position is not None and not self.cancelled.is_set():
                time.sleep(0.005)
            yield from self.events
        finally:
            self._engine._submissions.remove(self)


class FakeEngine:
    """Answers with `words`, one token each, `token_seconds` apart."""

    def __init__(self, words=("one ", "two ", "three"), token_seconds=0.0, context_length=2048, fail=None):
        self.words, self.token_seconds, self.context_length = list(words), token_seconds, context_length
        self.fail = fail
        self.prompts: list[list[dict]] = []
        self.arguments: dict = {}
        self.model_name, self.device = "demo", "cpu"
        self.model_path = Path("no-such-checkpoint")
        self.plan = FakePlan(slots=LAYERS * EXPERTS)
        self.closed = False
        self.store = None
        self.recording_problem = None
        self.traced_model = TracedModel("demo", "0123456789abcdef", RoutingShape(LAYERS, EXPERTS, TOP_K, 1000))
        self._stats = FakeStats()
        self.places = 4
        self._submissions: list[FakeSubmission] = []
        self._used = 0
        self._random = np.random.default_rng(0)
        self._counts = np.zeros((LAYERS, EXPERTS), dtype=np.int64)
        self._state = np.zeros((LAYERS, EXPERTS), dtype=np.uint8)

    @classmethod
    def load(cls, on_progress=None, **_options):
        if on_progress:
            on_progress("Reading dense weights", 1, 2)
        return cls()

    def plan_for(self, budget) -> FakePlan:
        if budget == "auto":
            return FakePlan(slots=LAYERS * EXPERTS)
        slots = int(float(str(budget).rstrip("%")) / 100 * LAYERS * EXPERTS)
        if str(budget).isdigit():
            raise BudgetTooSmall("The budget of 3 bytes is below what is needed.", "Give 0.3 GB.", 300_000_000)
        return FakePlan(slots=max(slots, TOP_K), budget=str(budget))

    def resize(self, budget) -> FakePlan:
        self.plan = self.plan_for(budget)
        return self.plan

    def chat(self, messages, **arguments):
        return iter(self.submit(messages, **arguments))

    def submit(self, messages, max_new_tokens=512, caller="", **arguments):
        """`places` answers are written at once, each while it is read."""
        if self.closed:
            raise EngineClosed("The engine was closed.", "Load the model again.")
        submission = FakeSubmission(self)
        self._submissions.append(submission)
        self.prompts.append(messages)
        self.arguments = {"max_new_tokens": max_new_tokens, **arguments}
        submission.events = self._answer(messages, max_new_tokens, submission)
        return submission

    def _answer(self, messages, max_new_tokens, submission):
        if self.fail is not None:
            raise self.fail
        self._used = sum(len(m["content"].split()) for m in messages)
        if self._used >= self.context_length:
            raise ContextFull(
                f"The chat needs {self._used} tokens and the context holds {self.context_length}.",
                "Start a new chat or drop the oldest turns.",
                self._used,
                self.context_length,
            )
        for index, word in enumerate(self.words[:max_new_tokens]):
            if submission.cancelled.is_set():
                yield FakeEvent("", None, "cancelled")
                return
            time.sleep(self.token_seconds)
            self._step()
            last = index + 1 == len(self.words)
            cut = index + 1 == max_new_tokens
            yield FakeEvent(word, index, "stop" if last else "length" if cut else None)

    def _step(self) -> None:
        self._used += 1
        need = self._random.integers(0, EXPERTS, (LAYERS, TOP_K))
        share = self.plan.slots / (LAYERS * EXPERTS)
        hits = int((self._random.random((LAYERS, TOP_K)) < share).sum())
        misses = LAYERS * TOP_K - hits
        np.add.at(self._counts, (np.arange(LAYERS)[:, None], need), 1)
        order = np.argsort(-self._counts, axis=None)
        self._state[:] = 0
        self._state.flat[order[: self.plan.slots]] = 2
        late = misses // 4
        s = self._stats
        self._stats = FakeStats(
            s.hits + hits,
            s.late + late,
            s.misses + misses - late,
            s.bytes_demand + misses * SLOT_BYTES,
            0,
            s.bytes_prefetch_used + late * SLOT_BYTES,
            s.bytes_prefetch_wasted + (late // 2) * SLOT_BYTES,
            s.stall_seconds + misses * 0.0004,
            s.tokens + 1,
        )

    def recent_routing(self) -> RoutingTrace:
        """As many random tokens as were generated."""
        count = self._stats.tokens
        experts = np.random.default_rng(0).random((count, LAYERS, EXPERTS)).argsort(-1)[..., :TOP_K].astype(np.int16)
        weights = np.zeros(experts.shape, np.float16)
        return RoutingTrace("recent", np.zeros(count, np.int32), experts, weights, np.ones(count, bool))

    def record_to(self, store, ahead=0, hidden=False, taps=True) -> None:
        self.store, self.recorded_hidden = store, hidden

    def cancel(self) -> None:
        for submission in self._submissions:
            submission.cancel()

    def stats(self) -> FakeStats:
        return self._stats

    def snapshot(self) -> FakeSnapshot:
        in_progress = len(self._submissions)
        busy, running = in_progress > 0, min(in_progress, self.places)
        return FakeSnapshot(
            self._stats,
            self.plan,
            busy,
            running,
            in_progress - running,
            "decode" if busy else "idle",
            0,
            0,
            self._used,
            self.context_length,
            0.42 if self._stats.tokens else None,
            (1 / self.token_seconds if self.token_seconds else 500.0) if self._stats.tokens else None,
            self._state.copy(),
            self._counts.copy(),
            model_name=self.model_name,
        )

    def close(self) -> None:
        self.closed = True
