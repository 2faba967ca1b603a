"""Cache-aware grouping: the group that is expected to need the fewest experts that are not there now.

Tokens join one by one, each the one that adds the fewest expected fetches to those before it. A chat's next token uses
much of what its last one did, which is still there: so a group stays together while the fairness bound lets it, and
pays for its experts once in several passes.
"""

from __future__ import annotations

import numpy as np

from engine.scheduling.fairness import FairPick

SURE = np.float32(0.98)  # a predicted expert still may not be used: none makes the group's next one free altogether


def cheapest_group(paths: np.ndarray, absent: np.ndarray, pick: FairPick, order: np.ndarray) -> list[int]:
    """Fills `pick` greedily; among tokens that add the same, the first in `order` goes.

    paths: float32 [waiting, layers * experts], the probability that each token uses each expert; absent: float32
    [layers * experts], 1 where the expert is neither there nor coming. Returns the places.
    """
    rank = np.empty(len(paths), np.float32)
    rank[order] = np.arange(len(paths), dtype=np.float32)
    tie = rank * np.float32(1e-6)
    unused = absent.astype(np.float32)  # of each absent expert, the probability that nobody in the group needs it
    while pick.room:
        added = paths @ unused + tie
        chosen = int(np.where(pick.allowed(), added, np.inf).argmin())
        pick.take(chosen)
        unused = unused * (1 - SURE * paths[chosen])
    return pick.taken
