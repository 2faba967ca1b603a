"""The CUDA link: experts wait in page-locked RAM, copy streams bring them into slots on the card.

docs/cuda_link.md argues the order of everything here, line by line.
"""

from __future__ import annotations

import threading
from typing import Any

from engine.cache.card_pool import CardPool
from engine.cache.host_tier import HostTier, Loan
from engine.cache.link import ExpertWeights, Link, Priority, Transfer
from engine.cache.links.card_calls import CardCalls
from engine.cache.slot_memory import SlotLayouts
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.expert_key import ExpertKey

_RELEASES = 64  # remembered one by one; older ones count as if they were as recent as these


def open_card_link(index: ExpertIndex, card: CardCalls, host_experts: int, computes_on_host: bool = False) -> CudaLink:
    """The link to `card`, with room for `host_experts` in RAM, which the processor computes with if it may."""
    return CudaLink(index, HostTier(index, host_experts, card), card, computes_on_host=computes_on_host)


class CudaLink(Link):
    """`copy` returns when the bytes are on the card. What was computed with a slot may still be running when the slot
    is filled anew: the copy itself waits for that, on the card.
    """

    name = "cuda"
    readers = 2  # one copies while the other wakes up
    chunk_bytes = 2 << 20
    tells_release = True

    def __init__(
        self,
        index: ExpertIndex,
        tier: HostTier,
        calls: CardCalls,
        pool: CardPool | None = None,
        computes_on_host: bool = False,
    ) -> None:
        self.computes_on_host = computes_on_host
        self._layouts = layouts = SlotLayouts(index)
        sizes = [max(param.offset_bytes + param.nbytes for param in params) for params in layouts.params]
        self._bytes_of_layer = [sizes[layout] for layout in layouts.of_layer]
        self._loans: dict[ExpertKey, Loan] = {}  # of experts that the processor computes
        self._tier, self._calls = tier, calls
        self._pool = pool or CardPool(index.slot_bytes, layouts, calls)
        self._streams = {priority: calls.stream(urgent=priority is Priority.DEMAND) for priority in Priority}
        self._of_thread = threading.local()
        self._releases = [calls.event() for _ in range(_RELEASES)]
        self._turn = 0
        self._last_use: dict[int, Any] = {}  # slot -> event: what was enqueued for its former expert is done

    @property
    def tier(self) -> HostTier:
        """Where experts wait."""
        return self._tier

    def grow(self, slots: list[int]) -> None:
        """Raises torch.OutOfMemoryError, and then nothing has changed."""
        self._pool.grow(slots)
        self._last_use.update(dict.fromkeys(slots))
        self._all_used_now()  # new memory may still be read by what it belonged to before

    def shrink(self, slots: list[int]) -> None:
        self._pool.shrink(slots)
        for slot in slots:
            del self._last_use[slot]
        self._all_used_now()  # rows have moved

    def transfer_bytes(self, key: ExpertKey) -> int:
        return self._bytes_of_layer[key.layer]

    def copy(self, transfer: Transfer, start: int, stop: int) -> None:
        calls, stream = self._calls, self._streams[transfer.priority]
        with self._tier.borrow(transfer.key) as loan:
            calls.wait(stream, self._last_use[transfer.slot])
            calls.copy(self._pool.bytes(transfer.slot)[start:stop], loan.place[start:stop], stream)
            arrived = self._event_of_thread()
            calls.record(arrived, stream)
            calls.synchronize(arrived)  # only then may the place be overwritten, and the cache hear of the arrival

    def finish(self, transfer: Transfer) -> None:
        """The host tier has put the bytes in order already."""

    def released(self, slots: list[int]) -> None:
        event = self._next_release()
        self._calls.record(event, self._calls.compute_stream())
        for slot in slots:
            self._last_use[slot] = event

    def weights(self, key: ExpertKey, slot: int) -> ExpertWeights:
        return self._pool.weights(key.layer, slot)

    def host_weights(self, key: ExpertKey) -> ExpertWeights:
        loan = self._loans[key] = self._tier.borrow(key)
        return ExpertWeights(loan.place.data_ptr(), self._layouts.views(key.layer, loan.place), on_host=True)

    def host_released(self, key: ExpertKey) -> None:
        self._loans.pop(key).close()

    def close(self) -> None:
        self._tier.close()
        self._pool.clear()

    def _all_used_now(self) -> None:
        event = self._next_release()
        self._calls.record(event, self._calls.compute_stream())
        self._last_use = dict.fromkeys(self._last_use, event)

    def _next_release(self) -> Any:
        self._turn = (self._turn + 1) % _RELEASES
        return self._releases[self._turn]

    def _event_of_thread(self) -> Any:
        """One for each reader: it waits for its own chunk before it records the next."""
        event = getattr(self._of_thread, "arrived", None)
        if event is None:
            event = self._of_thread.arrived = self._calls.event()
        return event
