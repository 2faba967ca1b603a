"""What the near tier is on this machine and who holds it: the card's memory, or RAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from engine.hardware.gpu_profiles import GpuProfile


@dataclass(frozen=True)
class NearMemory:
    """Bytes of the near tier: all of it, what is still free, and its name for the person."""

    name: str
    total_bytes: int
    free_bytes: int

    def others_bytes(self, ours_bytes: int) -> int:
        """What other programs (and the rest of this one) hold."""
        return max(self.total_bytes - self.free_bytes - ours_bytes, 0)


def near_memory(device: str) -> NearMemory:
    """The memory of `device` ("cpu", "cuda", "cuda:1") as it is now."""
    if device.startswith("cuda"):
        return _card_memory(device)
    memory = psutil.virtual_memory()
    return NearMemory("RAM", memory.total, memory.available)


def emulated_memory(card: GpuProfile, ours_bytes: int) -> NearMemory:
    """The memory of a card that is not here, in which nothing else is."""
    return NearMemory(card.label, card.vram_bytes, max(card.vram_bytes - ours_bytes, 0))


def _card_memory(device: str) -> NearMemory:
    import torch  # only where there is a card, and then the engine has imported it

    free_bytes, total_bytes = torch.cuda.mem_get_info(torch.device(device))
    return NearMemory(torch.cuda.get_device_name(torch.device(device)), total_bytes, free_bytes)
