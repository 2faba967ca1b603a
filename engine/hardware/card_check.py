"""`python -m engine.hardware.card_check`: whether PyTorch sees the cards that the driver sees, in one sentence.

Run after an installation. Says nothing where there is no NVIDIA card.
"""

from __future__ import annotations

from engine.hardware.device import choose_device
from engine.hardware.gpus import GpuSurvey, survey_gpus
from engine.hardware.torch_cuda import TorchCuda, ask_torch


def card_sentence(survey: GpuSurvey, torch_cuda: TorchCuda) -> str | None:
    """Which card the model will be computed on, or why none and what to do; None without any card."""
    if not survey.gpus and not torch_cuda.cards:
        return None
    return choose_device("auto", survey, torch_cuda).reason


if __name__ == "__main__":
    sentence = card_sentence(survey_gpus(), ask_torch())
    if sentence is not None:
        print(sentence)
