"""What the layers of the joint fast path write into, one after another, and where each chat's next token goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from engine.model.kv_cache import KvCache


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


class JointPositions:
    """Where each chat's next token goes: its number, its rotary angles, and the addresses of its keys and values."""

    def __init__(self, chats: Sequence[KvCache], rotary: Any, kv_shape: tuple[int, int]) -> None:
        kv_heads, head_dim = kv_shape
        for layer in (layer for chat in chats for layer in chat.layers if not layer.is_initialized):
            layer.allocate(kv_heads, head_dim, head_dim)
        self.numbers = np.array([chat.length for chat in chats])
        self.contexts = np.array([chat.context_length for chat in chats])
        cos, sin = rotary(torch.empty(1, dtype=torch.float32), torch.from_numpy(self.numbers)[None])
        self.cos, self.sin = cos[0].contiguous().numpy(), sin[0].contiguous().numpy()
        layers = list(zip(*(chat.layers for chat in chats), strict=True))
        self.keys = np.array([[layer.keys.data_ptr() for layer in of_chats] for of_chats in layers])
        self.values = np.array([[layer.values.data_ptr() for layer in of_chats] for of_chats in layers])
