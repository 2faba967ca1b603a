"""What moves an expert from the far tier to a slot: the one interface that differs between disk, CUDA and emulation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum

import torch

from engine.checkpoint.expert_key import ExpertKey


class Priority(IntEnum):
    """Smaller goes first; also the reason why a transfer was started."""

    DEMAND = 0
    CORRECTION = 1
    PREFETCH = 2


@dataclass(eq=False, slots=True)
class Transfer:
    """One expert on its way into one slot. `claimed_bytes` are given to readers, `moved_bytes` have arrived."""

    key: ExpertKey
    slot: int
    total_bytes: int
    origin: Priority
    priority: Priority
    submitted_at: float  # seconds, time.perf_counter
    claimed_bytes: int = 0
    moved_bytes: int = 0
    chunks_in_flight: int = 0
    error: Exception | None = None
    cancelled: bool = False

    @property
    def started(self) -> bool:
        return self.claimed_bytes > 0


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """An expert in memory: `address` of its first byte and a view per parameter, in the checkpoint's dtype.

    `on_host`: it is where it waits, in the processor's memory, while the model computes on a card.
    """

    address: int
    tensors: dict[str, torch.Tensor]
    on_host: bool = False


class Link(ABC):
    """Contract: `copy` is called by up to `readers` threads, never twice for one byte range, and blocks until the
    range has arrived. A slot is written by one transfer at a time and not freed while one writes.
    """

    name: str
    readers: int
    chunk_bytes: int  # of speculative transfers, so that a demand can overtake
    tells_release: bool = False  # whether `released` wants to be called
    computes_on_host: bool = False  # whether experts can be computed where they wait, and `host_weights` be called

    @abstractmethod
    def grow(self, slots: list[int]) -> None:
        """Provides near memory for new slots."""

    @abstractmethod
    def shrink(self, slots: list[int]) -> None:
        """Gives the near memory of these slots back to the system at once."""

    @abstractmethod
    def transfer_bytes(self, key: ExpertKey) -> int:
        """How many bytes a transfer of `key` moves."""

    @abstractmethod
    def copy(self, transfer: Transfer, start: int, stop: int) -> None:
        """Moves bytes [start, stop) of the transfer. Raises OSError or EngineError when they cannot be had."""

    @abstractmethod
    def finish(self, transfer: Transfer) -> None:
        """Called once after the last byte, before the expert is used: whatever its layout still needs."""

    @abstractmethod
    def weights(self, key: ExpertKey, slot: int) -> ExpertWeights:
        """Views of a resident expert; valid until it is evicted."""

    def released(self, slots: list[int]) -> None:  # noqa: B027 - where computing is over when the call returns
        """All computing with the experts in these slots has been enqueued, though it may still be running; called by
        the computing thread. From now on their memory may be given to others.
        """

    def host_weights(self, key: ExpertKey) -> ExpertWeights:
        """Views of an expert where it waits, in memory the processor computes with; valid until `host_released`."""
        raise NotImplementedError(f"Experts cannot be computed on the far side of {self.name}.")

    def host_released(self, key: ExpertKey) -> None:  # noqa: B027 - where far copies stay where they are
        """Computing with `host_weights(key)` is over."""

    def host_seconds(self, key: ExpertKey) -> float:
        """How long computing one token with the far copy has to take, where that is emulated; else 0."""
        return 0.0

    @abstractmethod
    def close(self) -> None:
        """Releases files and memory. Idempotent."""
