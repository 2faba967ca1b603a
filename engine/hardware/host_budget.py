"""How much RAM the middle tier may take: integer arithmetic on measured quantities."""

from __future__ import annotations

from dataclasses import dataclass

from engine.hardware.memory_plan import GIB, format_bytes

STAGING_EXPERTS = 4  # the fewest that keep two readers busy: two being read from disk, two on their way to the card
_MARGIN_BYTES = 2 * GIB  # left to the system and other programs
_MARGIN_SHARE = 8  # ... or an eighth of what is free, whichever is more


@dataclass(frozen=True)
class HostBudget:
    """`experts` of `expert_bytes` each wait in RAM; `reason` says why so many, in a sentence."""

    experts: int
    expert_bytes: int
    reason: str

    @property
    def nbytes(self) -> int:
        return self.experts * self.expert_bytes


def host_budget(available_bytes: int, expert_bytes: int, experts_total: int) -> HostBudget:
    """The budget where `available_bytes` of RAM are free. Never fewer experts than the staging needs."""
    margin = max(_MARGIN_BYTES, available_bytes // _MARGIN_SHARE)
    fitting = max(0, available_bytes - margin) // expert_bytes
    experts = min(experts_total, max(fitting, STAGING_EXPERTS))
    size = format_bytes(experts * expert_bytes)
    if experts == experts_total:
        return HostBudget(experts, expert_bytes, f"All {experts_total} experts fit in RAM ({size}): each is read once.")
    if fitting < STAGING_EXPERTS:
        free = format_bytes(available_bytes)
        reason = f"Only {free} of RAM are free: experts come from the disk by way of {experts} places ({size})."
        return HostBudget(experts, expert_bytes, reason)
    return HostBudget(
        experts,
        expert_bytes,
        f"RAM holds {experts} of {experts_total} experts ({size}); {format_bytes(margin)} stay with other programs, "
        "the rest of the experts comes from the disk.",
    )
