"""Where a model is computed, and what follows from it: the dtype, the memory that counts, the link."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from engine.cache.links.card_calls import CardCalls, TorchCard
from engine.card_emulation import plan_memory
from engine.checkpoint.dense_model import DenseModel
from engine.errors import InvalidSetting, NotEnoughMemory
from engine.hardware.available_memory import available_ram_bytes
from engine.hardware.device import choose_device
from engine.hardware.gpus import survey_gpus
from engine.hardware.held_memory import HeldMemory
from engine.hardware.host_budget import HostBudget, host_budget
from engine.hardware.memory_plan import Footprint, MemoryPlan, format_bytes, make_plan
from engine.hardware.torch_cuda import ask_torch
from engine.hardware.vram_reading import VramReader

_CARD_LINKS = ("auto", "cuda")


@dataclass(frozen=True)
class Placement:
    """`card` is None on the processor. `reason` says in a sentence why this device. `read_vram` asks the driver how
    full the card is; None where the driver does not know it by name. `held` measures what loading takes from here on.
    """

    device: torch.device
    reason: str
    card: CardCalls | None = None
    read_vram: VramReader | None = None
    held: HeldMemory = field(default_factory=HeldMemory)

    def plan(
        self, needs: Footprint, budget: str | int, link: str, held_bytes: int = 0, held_ram_bytes: int = 0
    ) -> MemoryPlan:
        """The memory plan. This engine's own already are `held_bytes` of the memory that is planned and
        `held_ram_bytes` of RAM behind a card. Raises what `make_plan` raises.
        """
        if self.card is None:
            return plan_memory(needs, budget, link, held_bytes)
        plan = make_plan(needs, budget, self.card.free_bytes() + held_bytes)
        return replace(plan, reasons=(self.reason, behind_card(needs, held_ram_bytes).reason, *plan.reasons))

    def take(self, dense: DenseModel) -> None:
        """Moves the dense weights there. Raises NotEnoughMemory."""
        try:
            dense.model.to(self.device)
        except torch.OutOfMemoryError as error:
            raise NotEnoughMemory(
                f"The dense weights ({format_bytes(dense.index.dense_bytes)}) do not fit into the card's memory.",
                "Close other programs that use the card, or load the model with --device cpu.",
            ) from error


def behind_card(needs: Footprint, held_ram_bytes: int = 0) -> HostBudget:
    """RAM for the experts that are not on the card."""
    return host_budget(available_ram_bytes() + held_ram_bytes, needs.slot_bytes, needs.experts_total)


def place(device: str, link: str) -> Placement:
    """For a device and a link as they are asked for. A link other than "cuda" is the processor's: asked for with the
    device left open, it decides.

    Raises DeviceNotAvailable, InvalidSetting.
    """
    if link not in _CARD_LINKS and device == "auto":
        return Placement(torch.device("cpu"), f"The model is computed on the processor, for link {link!r} was asked.")
    if device == "cpu" and link == "cuda":
        raise InvalidSetting(
            "The CUDA link needs a card, but the device is cpu.", "Use --link disk, or another device."
        )
    chosen = choose_device("cuda" if (device, link) == ("auto", "cuda") else device, survey_gpus(), ask_torch())
    if chosen.kind == "cpu":
        return Placement(torch.device("cpu"), chosen.reason)
    if link not in _CARD_LINKS:
        raise InvalidSetting(
            f"Link {link!r} brings experts to the processor, but the device is {device}.",
            "Use --link auto or cuda, or --device cpu.",
        )
    placed = torch.device(chosen.torch_name)
    card = TorchCard(placed)
    uuid = chosen.gpu.uuid if chosen.gpu else None
    reader = VramReader(uuid, card.reserved_bytes) if uuid else None
    return Placement(placed, chosen.reason, card, reader)
