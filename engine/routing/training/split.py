"""Which conversations train, which choose, which judge: decided by a hash, so that it never changes with the data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from engine.errors import InvalidSetting
from engine.routing.traces.trace import RoutingTrace

TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Split:
    """Conversations by their part; none is in two."""

    train: tuple[RoutingTrace, ...]
    validation: tuple[RoutingTrace, ...]
    test: tuple[RoutingTrace, ...]


def part_of(conversation: str) -> Part:
    """The same for a conversation wherever, whenever and beside whatever it is recorded."""
    digest = hashlib.sha256(conversation.encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    if place < TRAIN_SHARE:
        return "train"
    return "validation" if place < TRAIN_SHARE + VALIDATION_SHARE else "test"


def split_by_conversation(traces: Iterable[RoutingTrace]) -> Split:
    """Raises InvalidSetting when a part has no conversation: a hash gives each its share of many only."""
    parts: dict[Part, list[RoutingTrace]] = {"train": [], "validation": [], "test": []}
    for trace in traces:
        parts[part_of(trace.conversation)].append(trace)
    empty = [name for name, members in parts.items() if not members]
    if empty:
        found = len({trace.conversation for members in parts.values() for trace in members})
        raise InvalidSetting(
            f"Of {found} conversations none is for {' and '.join(empty)}.",
            "Record more conversations: some 30 give each part a few.",
        )
    return Split(*(tuple(parts[name]) for name in ("train", "validation", "test")))
