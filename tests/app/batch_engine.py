"""An engine that answers by counting; run as a program, it does a whole batch job, which can be killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from app.batch.job import BatchSettings, run_batch
from app.batch.output import BatchOutput
from engine.errors import ContextFull
from engine.generation.request import BatchAnswer, BatchPrompt
from engine.metrics import EngineStats
from engine.scheduling.scheduler_stats import SchedulerStats


class CountingEngine:
    """An answer depends on its prompt and seed alone; longer prompts end later. `asked`: how many were taken."""

    model_name = "counting"

    def __init__(self, batch_size: int = 3, seconds: float = 0.0, cancel_after: int | None = None) -> None:
        self._batch_size, self._seconds = batch_size, seconds
        self._cancel_after = cancel_after
        self._tokens = 0
        self.asked = self.most_at_once = 0

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        return list(" ".join(message["content"] for message in messages).encode())

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def check_prompt(self, ids: list[int], max_new_tokens: int) -> None:
        if len(ids) > 100:
            raise ContextFull("The chat is too long.", "Shorten it.", needed_tokens=len(ids), context_length=100)

    def stats(self) -> EngineStats:
        return EngineStats(tokens=self._tokens, decode_steps=self._tokens, activations=4 * self._tokens)

    def scheduler_stats(self) -> SchedulerStats:
        return SchedulerStats(passes=self._tokens, tokens=self._tokens)

    def answer_batch(self, prompts: Iterable[BatchPrompt]) -> Iterator[BatchAnswer]:
        waiting, members = enumerate(prompts), {}
        while True:
            while len(members) < self._batch_size and (one := next(waiting, None)) is not None:
                members[one[0]] = (one[1], [])
                self.asked += 1
            self.most_at_once = max(self.most_at_once, len(members))
            if not members or self._cancel_after is not None and self._tokens >= self._cancel_after:
                return
            time.sleep(self._seconds)
            for number, (prompt, ids) in list(members.items()):
                ids.append((sum(prompt.ids) + 7 * (prompt.settings.seed or 0) + len(ids)) % 50)
                self._tokens += 1
                if len(ids) >= min(prompt.max_new_tokens, 1 + len(prompt.ids) % 9):
                    del members[number]
                    yield BatchAnswer(number, ids, "length")


def main(source: str, target: str, seconds: str) -> None:
    with BatchOutput(Path(target)) as output:
        engine = CountingEngine(seconds=float(seconds))
        run_batch(engine, Path(source), output, BatchSettings(max_tokens=8), lambda *_: None)


if __name__ == "__main__":
    main(*sys.argv[1:])
