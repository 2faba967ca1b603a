"""Copying experts from far to near memory: RAM to RAM, or RAM to a card, page-locked and not."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from engine.hardware.speed import working_set_bytes

_COPIES_PER_STEP = 8  # queued before waiting, as a running engine does


class CopyInRam:
    """Steps that copy one piece between two places of RAM."""

    def __init__(self, piece_bytes: int) -> None:
        self._pieces = itertools.cycle(torch.full((_pieces(piece_bytes), piece_bytes), 1, dtype=torch.uint8))
        self._near = torch.full((piece_bytes,), 0, dtype=torch.uint8)

    def step(self) -> int:
        """Copies one piece; its bytes."""
        self._near.copy_(next(self._pieces))
        return self._near.nbytes


class CopyToCard:
    """Steps that copy some pieces from RAM to a card on a stream of their own and wait for them. Use `with`.

    Raises RuntimeError where the driver refuses the memory. `driver` stands in for the `torch` module.
    """

    def __init__(self, piece_bytes: int, index: int, page_locked: bool, driver: Any = torch) -> None:
        self._torch = driver
        count = _pieces(piece_bytes)
        device = driver.device("cuda", index)
        self._far = driver.empty((count, piece_bytes), dtype=driver.uint8, pin_memory=page_locked).fill_(1)
        self._near = driver.empty((2, piece_bytes), dtype=driver.uint8, device=device)
        self._stream = driver.cuda.Stream(device)
        self._step_bytes = _COPIES_PER_STEP * piece_bytes
        self._pairs = itertools.cycle([(place % 2, place) for place in range(count)])

    def __enter__(self) -> CopyToCard:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.synchronize()
        del self._far, self._near
        self._torch.cuda.empty_cache()
        self._torch.accelerator.empty_host_cache()  # page-locked memory is scarce, and torch would keep it

    def step(self) -> int:
        """Copies some pieces and waits for them; their bytes."""
        with self._torch.cuda.stream(self._stream):
            for near, far in itertools.islice(self._pairs, _COPIES_PER_STEP):
                self._near[near].copy_(self._far[far], non_blocking=True)
        self._stream.synchronize()
        return self._step_bytes


def _pieces(piece_bytes: int) -> int:
    return max(2, working_set_bytes() // piece_bytes)
