"""Counters of one engine since load, and frozen snapshots of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class EngineStats:
    """What has happened since load. Counts of activations are of decoding unless they begin with `prefill_`.

    `computed_far` of the misses were computed where the expert waited, by the processor. `bytes_*` are bytes that
    crossed the link, by what started the transfer and what became of it. `stall_seconds` is time the computation
    waited for a transfer while decoding. Subtract an earlier snapshot to get an interval: counters are differences,
    the sizes are the later ones. All `*_seconds` are this machine's; `tokens_per_second` is in an emulated card's
    time where there is one (`time_dilation`).
    """

    activations: int = 0
    hits: int = 0
    late: int = 0
    misses: int = 0
    computed_far: int = 0
    prefill_activations: int = 0
    prefill_hits: int = 0
    prefill_late: int = 0
    prefill_misses: int = 0
    prefill_computed_far: int = 0
    bytes_demand: int = 0
    bytes_correction: int = 0
    bytes_prefetch_used: int = 0
    bytes_prefetch_wasted: int = 0
    bytes_prefetch_pending: int = 0
    bytes_prefetch_cancelled: int = 0  # never crossed the link, so not part of bytes_total
    stall_seconds: float = 0.0
    prediction_seconds: float = 0.0  # of the computing thread, decoding
    computed_far_seconds: float = 0.0
    prefill_stall_seconds: float = 0.0
    tokens: int = 0  # generated; the first of an answer comes out of its prefill
    decode_steps: int = 0  # tokens read while decoding: one in a step for each chat
    decode_seconds: float = 0.0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    evictions: int = 0
    time_dilation: float = 1.0  # seconds here for each second of an emulated card
    near_bytes_experts: int = 0
    near_bytes_dense: int = 0
    near_bytes_kv: int = 0
    near_bytes_workspace: int = 0
    model_bytes_total: int = 0

    @property
    def bytes_total(self) -> int:
        prefetched = self.bytes_prefetch_used + self.bytes_prefetch_wasted + self.bytes_prefetch_pending
        return self.bytes_demand + self.bytes_correction + prefetched

    @property
    def hit_rate(self) -> float:
        """Share of decoding activations that were ready when needed; 0.0 before the first."""
        return self.hits / self.activations if self.activations else 0.0

    @property
    def prefill_hit_rate(self) -> float:
        return self.prefill_hits / self.prefill_activations if self.prefill_activations else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.time_dilation * self.decode_steps / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def near_bytes_total(self) -> int:
        return self.near_bytes_experts + self.near_bytes_dense + self.near_bytes_kv + self.near_bytes_workspace

    @property
    def memory_saving(self) -> float:
        """1 - near_bytes_total / model_bytes_total."""
        return 1.0 - self.near_bytes_total / self.model_bytes_total if self.model_bytes_total else 0.0

    def __sub__(self, earlier: EngineStats) -> EngineStats:
        changed = {
            field.name: getattr(self, field.name) - getattr(earlier, field.name)
            for field in fields(self)
            if field.name not in _SIZES
        }
        return EngineStats(**changed, **{name: getattr(self, name) for name in _SIZES})

    def to_dict(self) -> dict[str, float | int]:
        derived = (
            "bytes_total",
            "hit_rate",
            "prefill_hit_rate",
            "tokens_per_second",
            "near_bytes_total",
            "memory_saving",
        )
        return asdict(self) | {name: getattr(self, name) for name in derived}


_SIZES = (
    "time_dilation",
    "near_bytes_experts",
    "near_bytes_dense",
    "near_bytes_kv",
    "near_bytes_workspace",
    "model_bytes_total",
)


@dataclass
class CacheCounters:
    """What the cache counts, under its own lock. Index 0 of each pair is decoding, 1 is prefill."""

    hits: list[int]
    late: list[int]
    misses: list[int]
    stall_seconds: list[float]
    bytes_demand: int = 0
    bytes_correction: int = 0
    bytes_prefetch_moved: int = 0
    bytes_prefetch_used: int = 0
    bytes_prefetch_wasted: int = 0
    bytes_prefetch_cancelled: int = 0
    evictions: int = 0
    prediction_seconds: float = 0.0
    computed_far: int = 0  # only while decoding
    computed_far_seconds: float = 0.0

    @classmethod
    def zero(cls) -> CacheCounters:
        return cls([0, 0], [0, 0], [0, 0], [0.0, 0.0])

    def to_stats_fields(self) -> dict[str, Any]:
        """The part of EngineStats that the cache knows."""
        named: dict[str, Any] = {}
        for index, prefix in enumerate(("", "prefill_")):
            named[f"{prefix}hits"] = self.hits[index]
            named[f"{prefix}late"] = self.late[index]
            named[f"{prefix}misses"] = self.misses[index]
            named[f"{prefix}activations"] = self.hits[index] + self.late[index] + self.misses[index]
            named[f"{prefix}stall_seconds"] = self.stall_seconds[index]
        named["bytes_demand"] = self.bytes_demand
        named["bytes_correction"] = self.bytes_correction
        named["bytes_prefetch_used"] = self.bytes_prefetch_used
        named["bytes_prefetch_wasted"] = self.bytes_prefetch_wasted
        named["bytes_prefetch_cancelled"] = self.bytes_prefetch_cancelled
        resting = self.bytes_prefetch_moved - self.bytes_prefetch_used - self.bytes_prefetch_wasted
        named["bytes_prefetch_pending"] = resting
        named["computed_far"], named["computed_far_seconds"] = self.computed_far, self.computed_far_seconds
        named["evictions"] = self.evictions
        named["prediction_seconds"] = self.prediction_seconds
        return named
