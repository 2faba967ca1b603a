"""What crosses the engine's boundary while it works: events of an answer, snapshots for panels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.hardware.memory_plan import MemoryPlan
from engine.metrics import EngineStats

if TYPE_CHECKING:
    from engine.card_emulation import CardEmulation


@dataclass(frozen=True)
class ChatEvent:
    """`text` is the new piece. `finish_reason` is None until the last event: "stop" | "length" | "cancelled"."""

    text: str
    token_id: int | None
    finish_reason: str | None


@dataclass(frozen=True, eq=False)
class ForesightSnapshot:
    """The predictive policy at this moment.

    `gain`: measured speed with prediction over without, minus one; `pays`: it is on for that, but for a few tokens
    now and then; both None before the first comparison. `recall_*` float64 [layers]: share of the experts used that
    were among as many predicted ones, by stage 1 before the token's step and corrected right before the layer; None
    before the first token. `source` says what predicts.
    """

    pays: bool | None
    gain: float | None
    recall_before_step: np.ndarray | None
    recall_before_layer: np.ndarray | None
    source: str


@dataclass(frozen=True, eq=False)
class EngineSnapshot:
    """One look at a working engine. `phase` is "idle", "prefill" or "decode"; `prefill_*` count tokens. `running`
    answers are written now, up to `at_once`; `waiting` requests have not begun; `busy` means either.

    `residency` [layers, experts] uint8: 0 absent, 1 arriving, 2 resident. `use_counts` [layers, experts] int64:
    decoding activations since load. Under `emulation` tokens per second are in the card's time.
    """

    stats: EngineStats
    plan: MemoryPlan
    busy: bool
    running: int
    waiting: int
    at_once: int
    phase: str
    prefill_done: int
    prefill_total: int
    context_used: int
    context_length: int
    time_to_first_token_seconds: float | None
    recent_tokens_per_second: float | None
    residency: np.ndarray
    use_counts: np.ndarray
    link: str
    policy: str
    model_name: str
    architecture: str
    fast_path: str
    notes: tuple[str, ...]
    foresight: ForesightSnapshot | None
    emulation: CardEmulation | None = None
