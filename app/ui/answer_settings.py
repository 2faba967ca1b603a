"""The controls of system prompt and sampling: filled when the page opens, kept when they change."""

from __future__ import annotations

from typing import Any

import gradio as gr
from pydantic import ValidationError

from app.preferences import Preferences
from app.settings import Sampling
from app.ui.layout import SamplingControls

NO_PENALTY = 1.0


def to_controls(sampling: Sampling) -> list[Any]:
    """Values of the controls, in their order."""
    return [
        sampling.system_prompt,
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.min_p,
        NO_PENALTY if sampling.repetition_penalty is None else sampling.repetition_penalty,
        sampling.max_new_tokens,
        "" if sampling.seed is None else str(sampling.seed),
        "\n".join(sampling.stop),
    ]


def from_controls(
    system_prompt: str,
    temperature: float,
    top_p: float,
    top_k: float,
    min_p: float,
    repetition_penalty: float,
    max_new_tokens: float,
    seed: str,
    stop: str,
) -> Sampling:
    """Raises ValidationError or ValueError where a value makes no sense, such as a seed that is no number."""
    return Sampling(
        system_prompt=system_prompt or "",
        temperature=temperature,
        top_p=top_p,
        top_k=int(top_k),
        min_p=min_p,
        repetition_penalty=None if repetition_penalty == NO_PENALTY else repetition_penalty,
        max_new_tokens=int(max_new_tokens),
        seed=int(seed) if seed.strip() else None,
        stop=[line for line in (stop or "").split("\n") if line],
    )


def wire(demo: gr.Blocks, controls: SamplingControls, preferences: Preferences) -> None:
    """Connects the controls; must run inside the `gr.Blocks`."""

    def keep(*values: Any) -> None:
        try:
            preferences.set_sampling(from_controls(*values))
        except (ValidationError, ValueError, TypeError) as error:
            gr.Warning(f"This setting was not taken over: {_first_line(error)}. The previous value stays in use.")

    demo.load(lambda: to_controls(preferences.sampling), None, controls.all(), queue=False, show_progress="hidden")
    gr.on(
        [control.input for control in controls.all()],
        keep,
        controls.all(),
        None,
        queue=False,
        show_progress="hidden",
        trigger_mode="always_last",
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{first['loc'][0]}: {first['msg']}"
    return str(error)
