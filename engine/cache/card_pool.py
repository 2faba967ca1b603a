"""Near memory on a card: slots as rows of a few large tensors, so that a shrinking cache frees whole tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.cache.link import ExpertWeights
from engine.cache.links.card_calls import CardCalls
from engine.cache.slot_memory import SlotLayouts

SLAB_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """A place on the card: row `number` of slab `slab`."""

    slab: int
    number: int


class CardPool:
    """Slots by id. Call `grow`, `shrink` and `clear` between steps, from a thread that computes on the same stream.

    `slabs`: uint8 [rows, slot_bytes] each, by number; `row(slot)` says which row a slot is.
    """

    def __init__(self, slot_bytes: int, layouts: SlotLayouts, calls: CardCalls, slab_bytes: int = SLAB_BYTES) -> None:
        self._slot_bytes, self._layouts, self._calls = slot_bytes, layouts, calls
        self._slab_rows = max(1, slab_bytes // slot_bytes)
        self.slabs: dict[int, torch.Tensor] = {}
        self._numbers = 0
        self._row_of: dict[int, Row] = {}
        self._free: list[Row] = []
        self._views: dict[tuple[int, int], ExpertWeights] = {}

    @property
    def nbytes(self) -> int:
        """What the slabs take on the card."""
        return sum(slab.nbytes for slab in self.slabs.values())

    def row(self, slot: int) -> Row:
        return self._row_of[slot]

    def bytes(self, slot: int) -> torch.Tensor:
        """The slot's bytes, uint8 [slot_bytes]."""
        row = self._row_of[slot]
        return self.slabs[row.slab][row.number]

    def weights(self, layer: int, slot: int) -> ExpertWeights:
        """Views of the slot as one expert of `layer`; made once for each arrangement and place."""
        layout = self._layouts.of_layer[layer]
        views = self._views.get((slot, layout))
        if views is None:
            data = self.bytes(slot)
            tensors = self._layouts.views(layer, data)
            views = self._views[slot, layout] = ExpertWeights(data.data_ptr(), tensors)
        return views

    def grow(self, slots: list[int]) -> None:
        """Rows for new slots. Raises torch.OutOfMemoryError, and then nothing has changed."""
        made: list[int] = []
        try:
            while len(self._free) < len(slots):
                made.append(self._add_slab(min(self._slab_rows, len(slots) - len(self._free))))
        except torch.OutOfMemoryError:
            for number in made:
                self._drop_slab(number)
            self._calls.release_unused()
            raise
        for slot in slots:
            self._row_of[slot] = self._free.pop()

    def shrink(self, slots: list[int]) -> None:
        """Frees the rows of these slots and gives their memory back: what lies behind them moves up."""
        for slot in slots:
            self._free.append(self._row_of.pop(slot))
            self._forget_views(slot)
        kept, spare = self._slabs_to_keep()
        self._empty([number for number in self.slabs if number not in kept], kept)
        if spare:
            self._trim(kept[-1], spare)
        self._calls.release_unused()

    def clear(self) -> None:
        self._views.clear()
        self._row_of.clear()
        self._free.clear()
        self.slabs.clear()
        self._calls.release_unused()

    def _slabs_to_keep(self) -> tuple[list[int], int]:
        """The first slabs that hold all used rows, and how many rows of the last of them are then too many."""
        kept: list[int] = []
        rows = 0
        for number, slab in self.slabs.items():
            if rows >= len(self._row_of):
                break
            kept.append(number)
            rows += len(slab)
        return kept, rows - len(self._row_of)

    def _empty(self, dropped: list[int], kept: list[int]) -> None:
        """Moves what is in the `dropped` slabs into free rows of the `kept` ones, the first first."""
        order = {number: position for position, number in enumerate(kept)}
        room = sorted((row for row in self._free if row.slab in order), key=lambda row: -order[row.slab])
        for slot, row in self._row_of.items():
            if row.slab not in order:
                self._move(slot, room.pop())
        self._free = room
        for number in dropped:
            del self.slabs[number]

    def _trim(self, number: int, spare: int) -> None:
        """Puts a slab with `spare` fewer rows in the place of this one, if the card has room for both for a moment."""
        try:
            shorter = self._add_slab(len(self.slabs[number]) - spare)
        except torch.OutOfMemoryError:
            return  # a part of one slab stays unused until the next change
        rest = [row for row in self._free if row.slab not in (number, shorter)]
        room = [row for row in self._free if row.slab == shorter] + rest
        for slot, row in self._row_of.items():
            if row.slab == number:
                self._move(slot, room.pop())
        self._free = room
        self._drop_slab(number)

    def _move(self, slot: int, row: Row) -> None:
        source = self.bytes(slot)
        self._row_of[slot] = row
        self._calls.copy(self.bytes(slot), source, self._calls.compute_stream())
        self._forget_views(slot)

    def _forget_views(self, slot: int) -> None:
        for layout in range(len(self._layouts.params)):
            self._views.pop((slot, layout), None)

    def _add_slab(self, rows: int) -> int:
        slab = self._calls.empty(rows, self._slot_bytes)
        number, self._numbers = self._numbers, self._numbers + 1
        self.slabs[number] = slab
        self._free.extend(Row(number, row) for row in range(rows))
        return number

    def _drop_slab(self, number: int) -> None:
        del self.slabs[number]
        self._free = [row for row in self._free if row.slab != number]
