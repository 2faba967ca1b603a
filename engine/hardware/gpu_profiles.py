"""Common cards as numbers: memory, its bandwidth, the way to the host. What an emulated card is made of."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from engine.errors import InvalidSetting

PROFILES_FILE = Path(__file__).parents[2] / "assets" / "gpu_profiles.json"
GIB = 1 << 30
# Of one lane in each direction, after the line code (8b/10b, from generation 3 on 128b/130b).
LANE_BYTES_PER_SECOND = {1: 250e6, 2: 500e6, 3: 984.6e6, 4: 1969.2e6, 5: 3938.5e6}
_NOISE = re.compile(r"nvidia|geforce|rtx|gtx|gpu|[\s_-]+")
_MEMORY = re.compile(r"(?:[\s_-]|(?<=[a-z]))(?P<gib>\d{1,2})\s*gi?b?$")


class _Card(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    vram_bytes: int = Field(ge=GIB)
    memory_bytes_per_second: int = Field(ge=10**10)
    pcie_generation: int = Field(ge=min(LANE_BYTES_PER_SECOND), le=max(LANE_BYTES_PER_SECOND))
    pcie_lanes: int = Field(ge=1, le=16)


class _Profiles(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    about: list[str]
    pcie_efficiency: float = Field(gt=0, le=1)
    transfer_latency_seconds: float = Field(ge=0)
    cards: list[_Card] = Field(min_length=1)


@dataclass(frozen=True)
class GpuProfile:
    """One card. `link_bytes_per_second` is what pinned copies reach from the host to it."""

    name: str
    vram_bytes: int
    memory_bytes_per_second: int
    pcie_generation: int
    pcie_lanes: int
    link_bytes_per_second: float
    link_latency_seconds: float

    @property
    def label(self) -> str:
        """How it is called wherever a result of its emulation is shown."""
        return f"emulated {self.name}"

    def token_seconds(self, bytes_read: int) -> float:
        """Roofline of decoding with everything in its memory: each weight of a token is read once."""
        return bytes_read / self.memory_bytes_per_second

    @property
    def words(self) -> str:
        """Such as "RTX 4060: 8 GiB at 272 GB/s, PCIe 4.0 x8 (12.6 GB/s)"."""
        return (
            f"{self.name}: {self.vram_bytes / GIB:g} GiB at {self.memory_bytes_per_second / 1e9:g} GB/s, "
            f"PCIe {self.pcie_generation}.0 x{self.pcie_lanes} ({self.link_bytes_per_second / 1e9:.1f} GB/s)"
        )


@cache
def gpu_profiles() -> tuple[GpuProfile, ...]:
    """All cards, in the order of their file. A file that makes no sense is a fault of the program: ValueError."""
    return read_profiles(PROFILES_FILE)


def read_profiles(file: Path) -> tuple[GpuProfile, ...]:
    """The cards in `file`. Raises ValueError where it is not as it must be, or names a card twice."""
    read = TypeAdapter(_Profiles).validate_python(json.loads(file.read_text(encoding="utf-8")))
    profiles = tuple(
        GpuProfile(
            **card.model_dump(),
            link_bytes_per_second=LANE_BYTES_PER_SECOND[card.pcie_generation] * card.pcie_lanes * read.pcie_efficiency,
            link_latency_seconds=read.transfer_latency_seconds,
        )
        for card in read.cards
    )
    if len({_spelling(profile.name) for profile in profiles}) < len(profiles):
        raise ValueError(f"{file} names a card twice.")
    return profiles


def profile_named(text: str) -> GpuProfile:
    """The card called "4060", "rtx4060", "RTX 4060", "GeForce RTX 4060 8GB". Raises InvalidSetting."""
    model, gib = _spelling(text)
    found = [profile for profile in gpu_profiles() if _spelling(profile.name)[0] == model]
    found = [profile for profile in found if gib in (None, profile.vram_bytes // GIB)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidSetting(
            f"There are {len(found)} cards called {text!r}.",
            f"Say which: {', '.join(profile.name for profile in found)}.",
        )
    raise InvalidSetting(
        f"No card called {text!r} is known.", f"Use one of: {', '.join(profile.name for profile in gpu_profiles())}."
    )


def _spelling(text: str) -> tuple[str, int | None]:
    """ "RTX 4060 Ti 16 GB" -> "4060ti", 16; the size only where it is written with its unit."""
    text = text.strip().lower()
    match = _MEMORY.search(text)
    name = text[: match.start()] if match else text
    return _NOISE.sub("", name), int(match["gib"]) if match else None
