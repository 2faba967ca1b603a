"""What PyTorch says of CUDA: the installed one, and stand-ins for builds that are not here."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import torch

from engine.hardware.torch_cuda import TorchCard, ask_torch


def build(cards=(), cuda="13.0", warning=None, failure=None) -> SimpleNamespace:
    """A module that looks like torch, with these device properties."""

    def available() -> bool:
        if warning:
            warnings.warn(warning, stacklevel=1)
        if failure:
            raise RuntimeError(failure)
        return bool(cards)

    side = SimpleNamespace(
        is_available=available,
        device_count=lambda: len(cards),
        get_device_properties=lambda index: cards[index],
        get_arch_list=lambda: ["sm_86"],
    )
    return SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda=cuda), cuda=side)


def test_the_installed_build_is_asked():
    found = ask_torch()
    assert found.version == torch.__version__
    assert (found.built_for_cuda is None) == (torch.version.cuda is None)
    assert len(found.cards) == torch.cuda.device_count()


def test_a_build_without_cuda():
    assert ask_torch(build(cuda=None)).built_for_cuda is None


def test_a_card():
    card = SimpleNamespace(name="RTX 4090", total_memory=24 << 30, major=8, minor=9, uuid="AB-CD")
    found = ask_torch(build([card]))
    assert found.cards == (TorchCard(0, "RTX 4090", 24 << 30, (8, 9), "ab-cd"),)
    assert (found.built_for_cuda, found.architectures, found.problem) == ((13, 0), ("sm_86",), None)


def test_a_warning_about_the_driver_is_kept_as_its_problem():
    found = ask_torch(build(warning="The NVIDIA driver on your system is too old.\nUpdate it."))
    assert (found.cards, found.problem) == ((), "The NVIDIA driver on your system is too old.")


def test_a_failure_is_kept_as_its_problem():
    assert ask_torch(build(failure="CUDA unknown error")).problem == "CUDA unknown error"
