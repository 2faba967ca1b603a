"""Stock transformers on the same weights, and what "the same answer" means beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

RELATIVE_TOLERANCE = 1e-4  # of the logits' norm: the order of summation


class Stock:
    """`AutoModelForCausalLM` in fp32 with everything in memory."""

    def __init__(self, path: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def greedy(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens
            )
        return out[0, len(prompt) :].tolist()

    def logits(self, prompt: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self._model(torch.tensor([list(prompt)])).logits[0, -1].float()


def assert_same_logits(ours: torch.Tensor, stock: torch.Tensor) -> None:
    error = (ours - stock).norm() / stock.norm()
    assert error <= RELATIVE_TOLERANCE, f"logits differ by {error:.2e} of their norm"


def assert_same_greedy(ours: list[int], theirs: list[int], prompt: Sequence[int], stock: Stock) -> None:
    """Equal ids; or, from the first difference on, a tie that the order of summation may decide."""
    if ours == theirs:
        return
    at = next(n for n, (one, other) in enumerate(zip(ours + [-1], theirs + [-1], strict=False)) if one != other)
    logits = stock.logits([*prompt, *theirs[:at]])
    best, second = logits.topk(2).values
    margin = (best - second) / logits.norm()
    assert margin < RELATIVE_TOLERANCE, f"token {at} differs ({ours} / {theirs}) with a margin of {margin:.2e}"
