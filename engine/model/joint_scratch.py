"""What the layers of the joint fast path write into, one after another."""

from __future__ import annotations

from typing import Any

import numpy as np


class JointScratch:
    """Buffers for so many chats."""

    def __init__(self, config: Any, kv_shape: tuple[int, int], chats: int) -> None:
        heads, (kv_heads, head_dim) = config.num_attention_heads, kv_shape
        self.rows = np.arange(chats)
        self.residual, self.x, self.added = (np.empty((chats, config.hidden_size), np.float32) for _ in range(3))
        self.projected = np.empty((chats, (heads + 2 * kv_heads) * head_dim), np.float32)
        self.attended = np.empty((chats, heads, head_dim), np.float32)

        self._named: dict[str, np.ndarray] = {}

    def named(self, name: str, *shape: int, dtype: type = np.float32) -> np.ndarray:
        """An uninitialised array, valid until the next call with this name: fresh memory costs a fault a page."""
        known = self._named.get(name)
        if known is None or known.shape != shape:
            known = self._named[name] = np.empty(shape, dtype)
        return known

    @property
    def chats(self) -> int:
        return len(self.rows)
