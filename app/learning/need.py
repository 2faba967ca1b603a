"""Whether there is enough to learn from, and if not, how much is missing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from app.learning.learnt import Learnt
from app.routing_records import RoutingRecords
from engine.routing.predictor_files import predictor_files
from engine.routing.training.split import TRAIN_SHARE, VALIDATION_SHARE, part_of

SHARES = {"train": TRAIN_SHARE, "validation": VALIDATION_SHARE, "test": 1 - TRAIN_SHARE - VALIDATION_SHARE}


@dataclass(frozen=True)
class LearningLimits:
    """When learning begins and what it may cost.

    idle_seconds: without an answer, before it begins or goes on; resting_seconds: while answers are written, until its
    memory is given back too; new_tokens: recorded since the last run; first_tokens:
    the same where there is no predictor to learn on from; held_out_tokens: in chats put aside to choose by, and as
    many to judge by; every_seconds: from the end of one run to the next; training_minutes, run_seconds: of CPU time,
    of the training and of all; free_bytes: memory that has to be free; look_seconds: between two looks at what is
    recorded.
    """

    idle_seconds: float = 60.0
    resting_seconds: float = 300.0
    new_tokens: int = 4_000
    first_tokens: int = 20_000
    held_out_tokens: int = 400
    every_seconds: float = 4 * 3600.0
    training_minutes: float = 6.0
    run_seconds: float = 600.0
    free_bytes: int = 3 << 29
    look_seconds: float = 20.0


@dataclass(frozen=True)
class Need:
    """What is missing: tokens, about how many conversations, seconds until the next run may begin, bytes of memory, and
    whether mains power."""

    tokens: int = 0
    conversations: int = 0
    seconds: float = 0.0
    bytes: int = 0
    plug: bool = False

    @property
    def met(self) -> bool:
        return not (self.tokens or self.conversations or self.seconds or self.bytes or self.plug)


def need_of(model: str, records: RoutingRecords, learnt: Learnt, limits: LearningLimits) -> Need:
    """What is missing for a run now. `model`: the fingerprint of the recorded one. Raises TraceStoreUnavailable."""
    has_learnt = learnt.ended or any(file.exists() for file in predictor_files(model))
    wanted = limits.new_tokens if has_learnt else limits.first_tokens
    elapsed = time.time() - learnt.ended
    return Need(
        tokens=max(wanted - sum(records.tokens(learnt.mark).values()), 0),
        conversations=conversations_missing(records.tokens(), limits.held_out_tokens),
        seconds=max(limits.every_seconds - elapsed, 0.0) if elapsed >= 0 else 0.0,
        bytes=max(limits.free_bytes - psutil.virtual_memory().available, 0),
        plug=on_battery(),
    )


def on_battery() -> bool:
    """Whether the machine runs on it; False where nobody can tell."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is not None and battery.power_plugged is False


def conversations_missing(tokens: Mapping[str, int], wanted: int) -> int:
    """About how many more, until the parts that choose and judge have `wanted` tokens each: a hash gives a part its
    share of the conversations, so a few may have none. `tokens`: of each conversation so far."""
    held = dict.fromkeys(SHARES, 0)
    for conversation, count in tokens.items():
        held[part_of(conversation)] += count
    mean = max(sum(tokens.values()) / len(tokens), 1.0) if tokens else float(wanted)
    return max(
        math.ceil(math.ceil(max(wanted - held[part], 0) / mean) / SHARES[part] - 1e-9)
        for part in ("validation", "test")
    )
