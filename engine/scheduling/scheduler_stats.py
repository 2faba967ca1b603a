"""What the token scheduler has done, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SchedulerStats:
    """Since load. `passes` read a group each, `tokens` in all; `seconds` took the passes with what was chosen before
    them, `scheduling_seconds` the choosing alone. `worst_*`: the longest wait of a token for its pass, in passes that
    passed it over and in seconds until it was read. `passes_by_name`: by the grouping that chose them.
    """

    passes: int = 0
    tokens: int = 0
    seconds: float = 0.0
    scheduling_seconds: float = 0.0
    worst_wait_passes: int = 0
    worst_wait_seconds: float = 0.0
    passes_by_name: Mapping[str, int] = field(default_factory=dict)

    @property
    def scheduling_share(self) -> float:
        """Of the time that passes take."""
        return self.scheduling_seconds / self.seconds if self.seconds else 0.0

    def after(
        self, name: str, tokens: int, seconds: float, scheduling: float, wait_passes: int, wait_seconds: float
    ) -> SchedulerStats:
        """With one pass more."""
        return SchedulerStats(
            self.passes + 1,
            self.tokens + tokens,
            self.seconds + seconds,
            self.scheduling_seconds + scheduling,
            max(self.worst_wait_passes, wait_passes),
            max(self.worst_wait_seconds, wait_seconds),
            {**self.passes_by_name, name: self.passes_by_name.get(name, 0) + 1},
        )

    def __sub__(self, earlier: SchedulerStats) -> SchedulerStats:
        """What happened since; the worst waits are the later ones."""
        by_name = {name: count - earlier.passes_by_name.get(name, 0) for name, count in self.passes_by_name.items()}
        return SchedulerStats(
            self.passes - earlier.passes,
            self.tokens - earlier.tokens,
            self.seconds - earlier.seconds,
            self.scheduling_seconds - earlier.scheduling_seconds,
            self.worst_wait_passes,
            self.worst_wait_seconds,
            {name: count for name, count in by_name.items() if count},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self) | {"scheduling_share": self.scheduling_share}
