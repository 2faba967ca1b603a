"""The disk link: experts wait in the checkpoint's files, reader threads bring them into RAM slots."""

from __future__ import annotations

from engine.cache.link import ExpertWeights, Link, Transfer
from engine.cache.links.expert_files import ExpertFiles
from engine.cache.slot_memory import SlotMemory
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.expert_key import ExpertKey


class DiskLink(Link):
    """`direct` reads past the page cache where the file system allows it, so that RAM does not pose as disk."""

    readers = 2  # one O_DIRECT reader gets about 60 % of what two get
    chunk_bytes = 1 << 20

    def __init__(self, index: ExpertIndex, direct: bool = False) -> None:
        self._index = index
        self._files = ExpertFiles(index, direct)
        self._memory = SlotMemory(index)
        self.name = "disk:direct" if self._files.direct else "disk"

    def grow(self, slots: list[int]) -> None:
        self._memory.grow(slots)

    def shrink(self, slots: list[int]) -> None:
        self._memory.shrink(slots)

    def transfer_bytes(self, key: ExpertKey) -> int:
        return self._files.transfer_bytes(key)

    def copy(self, transfer: Transfer, start: int, stop: int) -> None:
        self._files.read(transfer.key, start, stop, self._memory.bytes(transfer.slot))

    def finish(self, transfer: Transfer) -> None:
        self._index.finish(transfer.key, self._memory.bytes(transfer.slot))

    def weights(self, key: ExpertKey, slot: int) -> ExpertWeights:
        return self._memory.weights(key.layer, slot)

    def close(self) -> None:
        self._files.close()
        self._memory.clear()
