"""One NVIDIA card as its driver describes it: memory, who uses it, its slot, its parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_PCIE_BYTES_PER_LANE_SECOND = {1: 250e6, 2: 500e6, 3: 985e6, 4: 1_969e6, 5: 3_938e6, 6: 7_563e6}


@dataclass(frozen=True)
class GpuProcess:
    """A program that holds memory of a card. `used_bytes` is None where the driver does not tell (Windows, WSL)."""

    pid: int
    name: str | None
    used_bytes: int | None
    own: bool


@dataclass(frozen=True)
class MigInstance:
    """A part of a card that its owner has split (multi-instance GPU); CUDA sees it as a card of its own."""

    index: int
    uuid: str | None
    name: str
    vram_total_bytes: int | None
    vram_free_bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """One card. Sizes in bytes; what the driver does not tell is None.

    `index` is NVML's (by PCI bus), which need not be CUDA's. `pcie_generation` and `pcie_lanes` are those negotiated
    now: an idle card lowers its generation to save power, so only lanes below `pcie_max_lanes` tell of a poor slot.
    `processes` is None where the driver gives no list.
    """

    index: int
    name: str
    vram_total_bytes: int | None
    vram_free_bytes: int | None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    pcie_max_generation: int | None = None
    pcie_max_lanes: int | None = None
    uuid: str | None = None
    pci_bus: str | None = None
    vram_used_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    processes: tuple[GpuProcess, ...] | None = None
    mig_enabled: bool = False
    mig_instances: tuple[MigInstance, ...] = ()

    @property
    def vram_own_bytes(self) -> int | None:
        """What the driver charges to this process; None where it does not tell."""
        return self._sum(own=True)

    @property
    def vram_others_bytes(self) -> int | None:
        """What the driver charges to other programs; None where it does not tell."""
        return self._sum(own=False)

    @property
    def pcie_bytes_per_second(self) -> float | None:
        """The most this card's slot carries one way once the card is awake, or None."""
        per_lane = _PCIE_BYTES_PER_LANE_SECOND.get(self.pcie_max_generation or self.pcie_generation or 0)
        lanes = self.pcie_lanes or self.pcie_max_lanes
        return per_lane * lanes if per_lane and lanes else None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        derived = {
            "vram_own_bytes": self.vram_own_bytes,
            "vram_others_bytes": self.vram_others_bytes,
            "pcie_bytes_per_second": self.pcie_bytes_per_second,
        }
        return {
            **asdict(self),
            "compute_capability": self.compute_capability and list(self.compute_capability),
            "processes": None if self.processes is None else [asdict(process) for process in self.processes],
            "mig_instances": [asdict(instance) for instance in self.mig_instances],
            **derived,
        }

    def _sum(self, own: bool) -> int | None:
        if self.processes is None:
            return None
        used = [process.used_bytes for process in self.processes if process.own == own]
        return None if None in used else sum(part for part in used if part is not None)
