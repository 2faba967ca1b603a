"""Misses computed where the experts wait, on the processor, instead of moving their weights to the near tier.

Moving an expert costs its bytes over the link; computing one token with it in place costs its bytes over the
processor's memory, and no slot. Which is cheaper is measured, not assumed.
"""

from __future__ import annotations

MEMORY = 0.9  # of what was measured before, at each new measurement
EXPLORING = 1 / 64  # of the time that misses take may go into measuring the side that is not used


class HostCompute:
    """Shares a layer's misses out between the link and the processor, which work side by side.

    Both costs are seconds for one expert, exponentially averaged; None until measured.
    """

    def __init__(self) -> None:
        self.host_seconds: float | None = None
        self.transfer_seconds: float | None = None
        self._saved_up = 0.0  # seconds that may be spent on measuring

    @property
    def pays(self) -> bool | None:
        """Whether a single miss is computed by the processor; None before both sides were measured."""
        if self.host_seconds is None or self.transfer_seconds is None:
            return None
        return self.host_seconds < self.transfer_seconds

    def share(self, misses: int) -> int:
        """How many of `misses` experts of one layer the processor computes: so many that the slower side is done
        soonest, of equally good numbers the smallest. Now and then one more or less, to measure an idle side again.
        """
        if not misses or self.transfer_seconds is None:
            return 0
        if self.host_seconds is None:
            return 1
        host, transfer = self.host_seconds, self.transfer_seconds
        costs = [max(count * host, (misses - count) * transfer) for count in range(misses + 1)]
        best = costs.index(min(costs))
        self._saved_up += EXPLORING * costs[best]
        if 0 < best < misses:
            return best
        other = 1 if best == 0 else best - 1
        if costs[other] - costs[best] > self._saved_up:
            return best
        self._saved_up = 0.0
        return other

    def words(self, computed: int, misses: int) -> str:
        """What is done, and why, in one sentence; empty before both sides were measured."""
        if self.host_seconds is None or self.transfer_seconds is None:
            return ""
        host, transfer = (f"{1e3 * seconds:.2g} ms" for seconds in (self.host_seconds, self.transfer_seconds))
        if not self.pays:
            return f"Absent experts are moved, {transfer} each: the processor would need {host} where they are."
        share = f"{computed / max(misses, 1):.0%} of those absent so far"
        return (
            f"The processor computes experts where they are, {host} each, when moving ({transfer}) is slower: {share}."
        )

    def computed(self, seconds: float) -> None:
        """The processor took so long for one expert."""
        self.host_seconds = _averaged(self.host_seconds, seconds)

    def transferred(self, seconds: float) -> None:
        """The link took so long for one expert that was waited for."""
        self.transfer_seconds = _averaged(self.transfer_seconds, seconds)


def _averaged(known: float | None, found: float) -> float:
    return found if known is None else MEMORY * known + (1 - MEMORY) * found
