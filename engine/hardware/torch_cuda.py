"""What the installed PyTorch sees of CUDA: which may be less than the driver does, or in another order."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TorchCard:
    """A card as `cuda:index` in PyTorch; `uuid` is the driver's, without its "GPU-" or "MIG-"."""

    index: int
    name: str
    vram_total_bytes: int
    compute_capability: tuple[int, int]
    uuid: str | None = None


@dataclass(frozen=True)
class TorchCuda:
    """PyTorch's side of the question whether a card can be used.

    `built_for_cuda` is the (major, minor) this build needs, None for a build without CUDA. `architectures` are those
    it has code for ("sm_86", "compute_120"). `problem` is what PyTorch said where asking failed.
    """

    version: str
    built_for_cuda: tuple[int, int] | None
    cards: tuple[TorchCard, ...] = ()
    architectures: tuple[str, ...] = ()
    problem: str | None = None

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether this build has code for a card of this compute capability."""
        if not self.architectures:
            return True
        return any(_runs(architecture, capability) for architecture in self.architectures)


def ask_torch(torch: Any = None) -> TorchCuda:
    """PyTorch's view now. Never raises for a broken driver: that becomes `problem`. Allocates nothing on a card.

    `torch` stands in for the module.
    """
    if torch is None:
        import torch
    built = _version(torch.version.cuda)
    if built is None:
        return TorchCuda(torch.__version__, None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            available = torch.cuda.is_available()
            cards = tuple(_card(torch, index) for index in range(torch.cuda.device_count())) if available else ()
        except (RuntimeError, AssertionError) as failure:
            return TorchCuda(torch.__version__, built, problem=_first_line(failure))
        architectures = tuple(torch.cuda.get_arch_list())
    problem = None if cards or not said else _first_line(said[0].message)
    return TorchCuda(torch.__version__, built, cards, architectures, problem)


def bare_uuid(uuid: str | None) -> str | None:
    """A card's UUID without "GPU-" or "MIG-", as PyTorch writes it."""
    return uuid and uuid.removeprefix("GPU-").removeprefix("MIG-").lower()


def _card(torch: Any, index: int) -> TorchCard:
    properties = torch.cuda.get_device_properties(index)
    uuid = getattr(properties, "uuid", None)
    return TorchCard(
        index=index,
        name=properties.name,
        vram_total_bytes=int(properties.total_memory),
        compute_capability=(properties.major, properties.minor),
        uuid=bare_uuid(str(uuid)) if uuid is not None else None,
    )


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Machine code ("sm_86") runs on its own generation from its version on, PTX ("compute_80") on all later cards."""
    kind, _, digits = architecture.partition("_")
    digits = digits.rstrip("af")  # "sm_90a": for this version only, which the comparison below allows
    if not digits.isdigit():
        return False
    built = (int(digits[:-1]), int(digits[-1]))
    return built <= capability and (kind == "compute" or built[0] == capability[0])


def _version(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    major, _, minor = text.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


def _first_line(problem: object) -> str:
    return str(problem).strip().partition("\n")[0]
