"""Engines whose "card" is the CPU's memory behind a fake of the CUDA calls: all that leads there and back is real."""

from __future__ import annotations

import pytest
import torch

from engine.placement import Placement
from tests.cache.fake_cuda import FakeCard


@pytest.fixture
def card(monkeypatch) -> FakeCard:
    """`Engine.load` places every model on it."""
    fake = FakeCard(lazy=False)
    placement = Placement(fake.device, "The model is computed on a card that the tests made up.", fake)
    monkeypatch.setattr("engine.engine.place", lambda device, link: placement)
    return fake


def run_out_of_memory(times: int, every: int = 1):
    """A function that raises torch.OutOfMemoryError on every `every`-th call, `times` in all; counts in `.raised`."""

    def maybe_raise() -> None:
        maybe_raise.calls += 1
        if maybe_raise.raised < times and maybe_raise.calls % every == 0:
            maybe_raise.raised += 1
            raise torch.OutOfMemoryError("CUDA out of memory (injected).\nMore of it.")

    maybe_raise.calls = maybe_raise.raised = 0
    return maybe_raise
