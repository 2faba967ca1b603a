"""What is asked of a model: how an answer is drawn, and prompts that are answered several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidSetting


@dataclass(frozen=True)
class SamplingSettings:
    """temperature 0.0 is greedy. top_k 0, top_p 1.0 and min_p 0.0 are off. repetition_penalty None is the
    checkpoint's own. Raises InvalidSetting for values outside their range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(0.0 <= self.temperature <= 10.0, "temperature", self.temperature, "between 0 and 10")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        _require(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "between 0 and 1")
        penalty = self.repetition_penalty
        _require(penalty is None or penalty > 0, "repetition_penalty", penalty, "above 0")


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise InvalidSetting(f"{name} is {value}.", f"It must be {allowed}.")


@dataclass(frozen=True)
class BatchPrompt:
    """One prompt and how it is answered."""

    ids: Sequence[int]
    max_new_tokens: int = 16
    settings: SamplingSettings = SamplingSettings()


@dataclass(frozen=True)
class BatchAnswer:
    """`number` counts prompts from 0. `reason` is "stop" or "length"; `ids` end with and include an end token."""

    number: int
    ids: list[int]
    reason: str
