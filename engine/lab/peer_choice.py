"""Which of stock transformers' experts implementations is its best here: measured, because it varies by machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.lab.contender_process import ContenderFailed, ContenderProcess

IMPLEMENTATIONS = ("grouped_mm", "batched_mm", "eager")
NOT_FOR_PROMPTS = "batched_mm"  # copies an expert for each (token, k): 17 GB for 1,000 tokens of the built-in model
TRIAL_TOKENS = 9


@dataclass(frozen=True)
class ImplementationChoice:
    """The best for each phase, and what was measured: name -> tokens per second and prefill seconds, or why not."""

    for_decoding: str
    for_prefill: str
    trials: dict[str, dict[str, Any]]


def choose_implementation(
    stock: ContenderProcess, prompt: list[int], long_prompt: list[int] | None = None
) -> ImplementationChoice:
    """Tries each on a short answer and, if given, on reading `long_prompt`. Raises ContenderFailed if none runs."""
    trials = {name: _try(stock, name, prompt, long_prompt) for name in IMPLEMENTATIONS}
    working = {name: trial for name, trial in trials.items() if "failed" not in trial}
    if not working:
        raise ContenderFailed(f"No experts implementation runs: {trials}.", "Leave stock transformers out.")
    return ImplementationChoice(
        for_decoding=max(working, key=lambda name: working[name]["tokens_per_second"]),
        for_prefill=min(set(working) - {NOT_FOR_PROMPTS} or working, key=lambda name: working[name]["prefill_seconds"]),
        trials=trials,
    )


def _try(stock: ContenderProcess, name: str, prompt: list[int], long_prompt: list[int] | None) -> dict[str, Any]:
    try:
        stock.answer(prompt, 2, implementation=name)  # first calls set things up
        answer = stock.answer(prompt, TRIAL_TOKENS, implementation=name)
        whole = long_prompt if long_prompt and name != NOT_FOR_PROMPTS else None
        read = stock.answer(whole, 1, implementation=name) if whole else answer
    except ContenderFailed as error:
        return {"failed": error.cause}
    return {
        "tokens_per_second": (len(answer["ids"]) - 1) / answer["decode_seconds"] if answer["decode_seconds"] else 0.0,
        "prefill_seconds": read["prefill_seconds"],
    }
