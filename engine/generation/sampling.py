"""Which token comes next: the checkpoint's own processors, then temperature, top-k, top-p and min-p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

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


class Sampler:
    """Chooses tokens for one answer. Greedy choices equal those of stock `generate(do_sample=False)`."""

    def __init__(self, model: PreTrainedModel, settings: SamplingSettings, prompt_tokens: int) -> None:
        self._settings = settings
        self._processors = _checkpoint_processors(model, settings, prompt_tokens)
        self._warpers = _warpers(settings)
        self._generator = torch.Generator()
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed)

    def choose(self, logits: torch.Tensor, ids: list[int]) -> int:
        """The next token id from logits [vocab], fp32, after `ids` (prompt and answer so far)."""
        scores = logits[None]
        if self._processors:
            scores = self._processors(torch.tensor([ids]), scores)
        if self._settings.temperature == 0.0:
            return int(scores.argmax())
        scores = self._warpers(None, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))


def _checkpoint_processors(
    model: PreTrainedModel, settings: SamplingSettings, prompt_tokens: int
) -> LogitsProcessorList:
    """What the checkpoint's generation_config asks for whatever the sampling (penalties, suppressed tokens...)."""
    penalty = settings.repetition_penalty
    overrides = {} if penalty is None else {"repetition_penalty": penalty}
    config, _ = model._prepare_generation_config(None, do_sample=False, **overrides)
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device="cpu", batch_size=1)
    return model._get_logits_processor(generation_config=config, input_ids_seq_length=prompt_tokens)


def _warpers(settings: SamplingSettings) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if settings.temperature not in (0.0, 1.0):
        warpers.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        warpers.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p > 0.0:
        warpers.append(MinPLogitsWarper(settings.min_p))
    return warpers
