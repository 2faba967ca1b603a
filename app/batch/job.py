"""A file of prompts through the engine: several at once, answers in the file's order, gone on with after a kill."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.batch.lines import BadLine, BatchLine, answer_line, error_line, read_line
from app.batch.output import BatchOutput
from engine.errors import EngineClosed, EngineError, InvalidSetting
from engine.generation.request import BatchAnswer, BatchPrompt, SamplingSettings

if TYPE_CHECKING:
    from engine import Engine

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BatchSettings:
    """For lines that do not say themselves: most new tokens, and the seed, to which the line's number is added."""

    max_tokens: int = 512
    seed: int = 0


def count_lines(path: Path) -> int:
    """Lines that are not empty. Raises InvalidSetting."""
    return sum(1 for _ in _lines(path))


def run_batch(
    engine: Engine,
    source: Path,
    output: BatchOutput,
    settings: BatchSettings,
    on_progress: Progress,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Answers what `output`, which is open, does not hold yet. Lines that cannot be answered get an error line.

    Raises InvalidSetting when `output` holds answers to another file; EngineError when the engine fails.
    """
    total, kept = count_lines(source), check_same_job(source, output)
    before, scheduled, begun = engine.stats(), engine.scheduler_stats(), time.perf_counter()
    answers = LineAnswers(engine, settings, output.write)
    on_progress("Answering", kept, total)
    for answer in engine.answer_batch(answers.prompts(numbered_lines(source, kept))):
        answers.answered(answer)
        on_progress("Answering", output.written, total)
    spent, scheduling = engine.stats() - before, engine.scheduler_stats() - scheduled
    return {
        "file": str(output.path),
        "lines": total,
        "lines_kept": kept,
        "lines_written": output.written,
        "lines_failed": output.failed,
        "stopped": stopped(),
        "seconds": time.perf_counter() - begun,
        "tokens": spent.tokens,
        "tokens_per_second": spent.tokens_per_second,
        "hit_rate": spent.hit_rate,
        "experts_per_token": spent.activations / max(spent.decode_steps, 1),
        "experts_per_step": spent.activations / max(scheduling.passes, 1),
        "tokens_per_step": scheduling.tokens / max(scheduling.passes, 1),
        "groupings": dict(scheduling.passes_by_name),
        "scheduling_share": scheduling.scheduling_share,
        "worst_wait_passes": scheduling.worst_wait_passes,
        "worst_wait_seconds": scheduling.worst_wait_seconds,
        "bytes_moved": spent.bytes_total,
        "bytes_per_token": spent.bytes_total / max(spent.tokens, 1),
        "stall_seconds": spent.stall_seconds,
    }


class LineAnswers:
    """Lines on their way through an engine. Their answers, and errors of lines that cannot be asked, go to `write`
    with the line's number, as soon as they are known."""

    def __init__(self, engine: Engine, settings: BatchSettings, write: Callable[[int, dict[str, Any]], None]) -> None:
        self._engine, self._settings, self._write = engine, settings, write
        self._asked: dict[int, tuple[BatchLine, int]] = {}  # by the engine's number; with the prompt's tokens
        self._numbers = itertools.count()

    def prompts(self, lines: Iterable[tuple[int, str]]) -> Iterator[BatchPrompt]:
        """What the engine is asked, as it takes them; `lines` with their numbers."""
        for number, text in lines:
            line = read_line(number, text, self._settings.max_tokens, self._settings.seed)
            prompt = line if isinstance(line, BadLine) else self._prompt_of(line)
            if isinstance(prompt, BadLine):
                self._write(number, error_line(prompt))
            else:
                yield prompt

    def answered(self, answer: BatchAnswer) -> None:
        """What the engine gave for one of `prompts`."""
        line, prompt_tokens = self._asked.pop(answer.number)
        text = self._engine.decode(answer.ids)
        row = answer_line(line, self._engine.model_name, text, answer.reason, prompt_tokens, len(answer.ids))
        self._write(line.number, row)

    def _prompt_of(self, line: BatchLine) -> BatchPrompt | BadLine:
        try:
            ids = self._engine.encode(line.messages)
            self._engine.check_prompt(ids, line.max_tokens)
        except EngineClosed:
            raise
        except EngineError as error:
            return BadLine(line.number, line.custom_id, f"{error.cause} {error.remedy}")
        self._asked[next(self._numbers)] = line, len(ids)
        settings = SamplingSettings(temperature=line.temperature, top_p=line.top_p, seed=line.seed)
        return BatchPrompt(ids, line.max_tokens, settings)


def check_same_job(source: Path, output: BatchOutput) -> int:
    """How many answers are there already, each to its line of `source`. Raises InvalidSetting if they are not."""
    lines, kept = _lines(source), 0
    for custom_id in output.custom_ids():
        text = next(lines, None)
        if text is None or _custom_id(text) != custom_id:
            raise InvalidSetting(
                f"{output.path} holds answers to other lines than those of {source} (line {kept + 1}).",
                "Name another output file; this one is left as it is.",
            )
        kept += 1
    return kept


def _custom_id(text: str) -> str | None:
    try:
        found = json.loads(text)["custom_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def numbered_lines(path: Path, first: int) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, from number `first` on. Raises InvalidSetting."""
    return itertools.islice(enumerate(_lines(path)), first, None)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.strip():
                    yield line
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror}.", "Check the file's name.") from error
