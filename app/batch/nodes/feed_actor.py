"""The feed as Ray's actor on the machine that has the file, and where expected routes come from there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.batch.job import BatchSettings, numbered_lines
from app.batch.lines import BadLine, read_line
from app.batch.nodes.feed import Line, PromptFeed
from app.batch.nodes.spread import ROUND_ROBIN, ByRoutes, RoundRobin, Spread
from engine.errors import EngineError, InvalidSetting


@dataclass(frozen=True)
class FeedPlan:
    """`kept` lines are answered already. `spread`: as `--spread` names it."""

    source: Path
    kept: int
    model: str
    spread: str
    places: int
    ticket_lines: int
    window_lines: int
    settings: BatchSettings


@dataclass(frozen=True)
class Handout:
    """What a worker is given: lines, or why the job cannot go on."""

    lines: list[Line]
    problem: tuple[str, str] | None = None


class FeedActor:
    """The first worker that asks says which model it has loaded; the others must have the same."""

    def __init__(self, plan: FeedPlan) -> None:
        self._plan = plan
        self._feed: PromptFeed | None = None
        self._loaded: tuple[str, str] | None = None
        self._on_write = asyncio.Condition()

    async def take(self, ticket: int, worker: str, node: str, fingerprint: str) -> Handout:
        """Lines for a ticket; waits while too much is read that is not written yet."""
        try:
            feed = self._feed_for(node, fingerprint)
            while (lines := feed.take(ticket, worker)) is None:
                async with self._on_write:
                    await self._on_write.wait()
        except EngineError as error:
            return Handout([], (error.cause, error.remedy))
        return Handout(lines)

    async def written(self, number: int) -> None:
        """All lines before `number` are in the output."""
        if self._feed is not None:
            self._feed.written(number)
        async with self._on_write:
            self._on_write.notify_all()

    def _feed_for(self, node: str, fingerprint: str) -> PromptFeed:
        if self._feed is None:
            spread = _make_spread(self._plan, fingerprint)
            lines = numbered_lines(self._plan.source, self._plan.kept)
            sizes = self._plan.places, self._plan.ticket_lines, self._plan.window_lines
            self._feed, self._loaded = PromptFeed(lines, self._plan.kept, spread, *sizes), (node, fingerprint)
        assert self._loaded is not None
        if self._loaded[1] != fingerprint:
            raise InvalidSetting(
                f"The model {self._plan.model!r} on {node} has other weights than that on {self._loaded[0]}.",
                "Put the same files on all machines.",
            )
        return self._feed


class _ExpectedUse:
    """Reads a line as the engine would and asks the predictor, on this machine."""

    def __init__(self, model: str, fingerprint: str, settings: BatchSettings) -> None:
        """Raises InvalidSetting where routes cannot be told, and what `locate_model` raises."""
        from engine.loading import load_tokenizer, locate_model
        from engine.routing.predictor_files import find_predictor
        from engine.routing.predictors.registry import predictor_of

        stored, problem = find_predictor(fingerprint)
        if stored is None:
            raise InvalidSetting(f"No predictor knows this model's routes.{problem}", "Train one: `train-predictor`.")
        self._tokenizer = load_tokenizer(locate_model(model, None).path)
        self._predictor, self._settings = predictor_of(stored), settings

    def __call__(self, number: int, text: str) -> np.ndarray | None:
        from engine.generation.prompt import encode_chat
        from engine.routing.prompt_routes import predicted_use

        line = read_line(number, text, self._settings.max_tokens, self._settings.seed)
        if isinstance(line, BadLine) or self._tokenizer is None:
            return None
        messages: list[dict[str, Any]] = list(line.messages)
        try:
            ids = encode_chat(self._tokenizer, messages, set())
        except EngineError:
            return None  # the worker will say so in the line's answer
        return predicted_use(self._predictor, ids) if ids else None


def _make_spread(plan: FeedPlan, fingerprint: str) -> Spread:
    """Raises InvalidSetting where routes are asked for and cannot be told."""
    if plan.spread == ROUND_ROBIN:
        return RoundRobin(plan.places)
    try:
        use_of = _ExpectedUse(plan.model, fingerprint, plan.settings)
    except EngineError as error:
        raise InvalidSetting(error.cause, f"{error.remedy} Or use `--spread {ROUND_ROBIN}`.") from error
    return ByRoutes(plan.places, use_of, plan.window_lines // plan.places)
