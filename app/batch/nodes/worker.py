"""What Ray Data's actors run: an engine each, which asks the feed for lines with every ticket it is given."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError

if TYPE_CHECKING:
    from app.batch.job import BatchSettings
    from engine import Engine
    from engine.metrics import EngineStats

RESULT = "result"  # the one column of what comes back: JSON, a row for each line


class EngineWorker:
    """A class for `Dataset.map_batches`. Rows come in their lines' order: a repeated ticket gives the same again."""

    def __init__(
        self,
        feed: Any,
        engine_options: dict[str, Any],
        settings: BatchSettings,
        share: int,
        schedule: tuple[Any, ...] = (),
    ) -> None:
        """`feed`: the FeedActor's handle; `share`: so many workers share this machine's processors.

        What is wrong with the model here is told in the first row.
        """
        os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // share, 1))  # Ray would give an engine one
        import ray

        self._feed, self._settings = feed, settings
        self._name, self._node = ray.get_runtime_context().get_actor_id(), platform.node()
        self._engine: Engine | None = None
        self._problem: tuple[str, str] | None = None
        try:
            self._engine = self._load(engine_options, schedule)
            self._told = self._engine.stats()
        except EngineError as error:
            self._problem = error.cause, error.remedy

    def __call__(self, batch: dict[str, Iterable[int]]) -> Iterator[dict[str, list[str]]]:
        """`batch`: numbers of tickets in the column "id"."""
        for ticket in batch["id"]:
            try:
                for row in self._rows(int(ticket)):
                    yield {RESULT: [json.dumps(row, ensure_ascii=False)]}
            except EngineError as error:
                yield {RESULT: [json.dumps(self._failure(error.cause, error.remedy))]}

    def _load(self, options: dict[str, Any], schedule: tuple[Any, ...]) -> Engine:
        from engine import Engine
        from engine.scheduling.token_scheduler import SchedulerSettings

        engine = Engine.load(**options)
        engine.schedule(SchedulerSettings(*schedule))
        return engine

    def _rows(self, ticket: int) -> Iterator[dict[str, Any]]:
        import ray

        if self._engine is None or self._problem is not None:
            yield self._failure(*(self._problem or ("", "")))
            return
        fingerprint = self._engine.traced_model.fingerprint
        given = ray.get(self._feed.take.remote(ticket, self._name, self._node, fingerprint))
        if given.problem is not None:
            yield self._failure(*given.problem)
            return
        yield from self._answers(self._engine, given.lines)

    def _answers(self, engine: Engine, lines: list[tuple[int, str]]) -> Iterator[dict[str, Any]]:
        from app.batch.job import LineAnswers

        early: dict[int, dict[str, Any]] = {}
        waiting = [number for number, _ in reversed(lines)]
        answers = LineAnswers(engine, self._settings, early.__setitem__)
        for answer in engine.answer_batch(answers.prompts(lines)):
            answers.answered(answer)
            while waiting and waiting[-1] in early:
                yield self._answered(waiting[-1], early.pop(waiting.pop()))
        for number in reversed(waiting):
            yield self._answered(number, early.pop(number))

    def _answered(self, number: int, answer: dict[str, Any]) -> dict[str, Any]:
        assert self._engine is not None
        now = self._engine.stats()
        spent, self._told = counted(now - self._told), now
        return {"worker": self._name, "node": self._node, "number": number, "answer": answer, "spent": spent}

    def _failure(self, cause: str, remedy: str) -> dict[str, Any]:
        return {"worker": self._name, "node": self._node, "problem": [cause, remedy]}


def counted(spent: EngineStats) -> dict[str, float]:
    """What is added up over answers and workers; seconds are an emulated card's where there is one."""
    return {
        "tokens": spent.tokens,
        "decode_steps": spent.decode_steps,
        "decode_seconds": spent.decode_seconds / spent.time_dilation,
        "activations": spent.activations,
        "hits": spent.hits,
        "bytes_moved": spent.bytes_total,
        "stall_seconds": spent.stall_seconds,
    }
