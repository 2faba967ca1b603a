"""One measured answer: decoding alone, from the first token on, with what the cache did and the routing it met."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidSetting
from engine.lab.belady import Step, decoded_steps
from engine.lab.process_memory import peak_rss_bytes, reset_peak_rss
from engine.lab.prompts import Messages

if TYPE_CHECKING:
    from engine import Engine

BYTE_COUNTERS = (
    "bytes_demand",
    "bytes_correction",
    "bytes_prefetch_used",
    "bytes_prefetch_wasted",
    "bytes_prefetch_pending",
    "bytes_total",
)


@dataclass(frozen=True)
class DecodeMeasurement:
    """Sums over a set of answers. `tokens` are decoded ones: the first of each answer belongs to its prefill.

    `routing` holds the decoding steps of each answer, `ids` the tokens of each, `wall_seconds` all time in decoding.
    """

    ids: tuple[tuple[int, ...], ...]
    routing: tuple[tuple[Step, ...], ...]
    tokens: int
    wall_seconds: float
    activations: int
    hits: int
    late: int
    misses: int
    stall_seconds: float
    prediction_seconds: float
    bytes_moved: dict[str, int]
    peak_near_bytes: int
    peak_rss_bytes: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.wall_seconds

    def in_time(self, dilation: float) -> DecodeMeasurement:
        """The same in an emulated card's time, of which each second takes `dilation` seconds here."""
        clocks = ("wall_seconds", "stall_seconds", "prediction_seconds")
        return replace(self, **{name: getattr(self, name) / dilation for name in clocks})

    def rates(self) -> dict[str, float]:
        """What happened to an activation, as shares."""
        whole = max(self.activations, 1)
        return {"hit_rate": self.hits / whole, "late_rate": self.late / whole, "miss_rate": self.misses / whole}


def measure_decoding(engine: Engine, chats: list[Messages], new_tokens: int) -> DecodeMeasurement:
    """Answers every chat greedily with at most `new_tokens` tokens. Raises InvalidSetting if nothing is decoded."""
    reset_peak_rss()
    engine.record_routing(True)
    try:
        answers = [_measure_answer(engine, chat, new_tokens) for chat in chats]
    finally:
        engine.record_routing(False)
    if not any(answer.tokens for answer in answers):
        raise InvalidSetting("Every answer ended with its first token: nothing to measure.", "Give other --prompts.")
    return _sum(answers)


def _measure_answer(engine: Engine, chat: Messages, new_tokens: int) -> DecodeMeasurement:
    events = engine.chat(chat, max_new_tokens=new_tokens, temperature=0.0)
    ids = [_token_id(next(events))]
    engine.take_routing()  # the prompt's
    before, begin = engine.stats(), time.perf_counter()
    peak_near = before.near_bytes_total
    for event in events:
        if event.token_id is not None:
            ids.append(event.token_id)
        peak_near = max(peak_near, engine.plan.near_bytes_total)
    seconds = time.perf_counter() - begin
    after = engine.stats()
    change = after - before
    return DecodeMeasurement(
        ids=(tuple(ids),),
        routing=(tuple(decoded_steps(engine.take_routing())),),
        tokens=len(ids) - 1,
        wall_seconds=seconds,
        activations=change.activations,
        hits=change.hits,
        late=change.late,
        misses=change.misses,
        stall_seconds=change.stall_seconds,
        prediction_seconds=change.prediction_seconds,
        bytes_moved={name: getattr(change, name) for name in BYTE_COUNTERS},
        peak_near_bytes=max(peak_near, after.near_bytes_total),
        peak_rss_bytes=peak_rss_bytes(),
    )


def _token_id(event: Any) -> int:
    assert event.token_id is not None, "an answer begins with a token"
    return int(event.token_id)


def _sum(answers: list[DecodeMeasurement]) -> DecodeMeasurement:
    return DecodeMeasurement(
        ids=tuple(ids for answer in answers for ids in answer.ids),
        routing=tuple(steps for answer in answers for steps in answer.routing),
        tokens=sum(answer.tokens for answer in answers),
        wall_seconds=sum(answer.wall_seconds for answer in answers),
        activations=sum(answer.activations for answer in answers),
        hits=sum(answer.hits for answer in answers),
        late=sum(answer.late for answer in answers),
        misses=sum(answer.misses for answer in answers),
        stall_seconds=sum(answer.stall_seconds for answer in answers),
        prediction_seconds=sum(answer.prediction_seconds for answer in answers),
        bytes_moved={name: sum(answer.bytes_moved[name] for answer in answers) for name in BYTE_COUNTERS},
        peak_near_bytes=max(answer.peak_near_bytes for answer in answers),
        peak_rss_bytes=max(answer.peak_rss_bytes for answer in answers),
    )
