"""Which token comes next: the checkpoint's own processors, then temperature, top-k, top-p and min-p."""

from __future__ import annotations

import torch
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.generation.request import SamplingSettings


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


class KeptLogits:
    """Stands where a sampler does, to measure: keeps the logits, fp32 [vocab], and chooses greedily."""

    logits: torch.Tensor

    def choose(self, logits: torch.Tensor, ids: list[int]) -> int:
        """The likeliest token."""
        self.logits = logits.clone()
        return int(logits.argmax())


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
