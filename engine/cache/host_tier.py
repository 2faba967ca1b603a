"""The middle tier: experts in RAM between the checkpoint's files and a card's slots.

Filled as experts are asked for, or at the start. Where the whole model fits, each expert is read once; where not,
experts leave for others and are read again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import torch

from engine.cache.host_memory import HostMemory, PageLock
from engine.cache.links.expert_files import ExpertFiles
from engine.cache.policies import EvictionPolicy
from engine.cache.random_eviction import RandomEviction
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import EngineClosed, NotEnoughMemory

STAGE = "Reading experts into RAM"
_READ_BYTES = 2 << 20  # threads that wait for one expert share its reading in pieces of this size
Progress = Callable[[str, int, int], None]


class _Held:
    """One expert in RAM, or on its way there."""

    __slots__ = ("borrowers", "claimed_bytes", "error", "place", "read_bytes", "ready", "total_bytes")

    def __init__(self, place: torch.Tensor, total_bytes: int) -> None:
        self.place, self.total_bytes = place, total_bytes
        self.borrowers = self.claimed_bytes = self.read_bytes = 0
        self.ready = False
        self.error: Exception | None = None


class HostTier:
    """At most `experts` of them in RAM. Methods may be called from any thread."""

    def __init__(
        self,
        index: ExpertIndex,
        experts: int,
        page_lock: PageLock | None = None,
        policy: EvictionPolicy | None = None,
        files: ExpertFiles | None = None,
        memory: HostMemory | None = None,
    ) -> None:
        self._index = index
        self._files = files or ExpertFiles(index, direct=False)
        self._memory = memory or HostMemory(index.slot_bytes, page_lock)
        self._policy = policy or RandomEviction()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._held: dict[ExpertKey, _Held] = {}
        self._in_use: set[ExpertKey] = set()
        self._free: list[torch.Tensor] = []
        self._places_left = experts  # that may still be made
        self.places = 0
        self.found, self.read_from_disk = 0, 0  # borrowings of what was there or coming, and of what was not
        self._closed = False

    # -- experts --------------------------------------------------------------------------------------------------

    def borrow(self, key: ExpertKey) -> Loan:
        """The expert's bytes, in the parameters' order, at a place that stays as it is until the loan is over.

        Blocks while they are read; threads that want the same expert share the work. Raises OSError, EngineError.
        """
        with self._lock:
            held = self._find(key) or self._place(key)
            held.borrowers += 1
            self._in_use.add(key)
            self._policy.used(key)
        try:
            self._read_together(key, held)
        except BaseException:
            self._give_back(key, held)
            raise
        return Loan(self, key, held)

    def fill(self, on_progress: Progress | None = None, stopped: Callable[[], bool] = lambda: False) -> int:
        """Reads experts in the order of the layers until all places are taken or `stopped()`. Returns how many.

        Raises what `borrow` raises.
        """
        counts = self._index.experts_per_layer
        keys = [ExpertKey(layer, expert) for layer, count in enumerate(counts) for expert in range(count)]
        wanted = keys[: self.places + self._places_left]
        for done, key in enumerate(wanted):
            if stopped():
                return done
            with self.borrow(key):
                pass
            if on_progress is not None:
                on_progress(STAGE, done + 1, len(wanted))
        return len(wanted)

    # -- seeing ---------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """RAM taken so far."""
        return self._memory.locked_bytes + self._memory.pageable_bytes

    @property
    def problem(self) -> str | None:
        """Why copies from here are slower than they could be, in a sentence."""
        return self._memory.problem

    def check(self) -> None:
        """Raises AssertionError when an invariant is broken (for tests)."""
        with self._lock:
            places = [held.place.data_ptr() for held in self._held.values()] + [p.data_ptr() for p in self._free]
            assert len(places) == len(set(places)), "one place has two owners"
            assert len(places) <= self.places, "there are more places than were made"
            assert all(held.ready for key, held in self._held.items() if key not in self._in_use)
            assert self._in_use == {key for key, held in self._held.items() if held.borrowers}

    def close(self) -> None:
        """Frees the RAM and closes the files. Nothing may be on loan. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            self._held.clear()
            self._free.clear()
        self._memory.close()
        self._files.close()

    # -- places (called with the lock held) -----------------------------------------------------------------------

    def _find(self, key: ExpertKey) -> _Held | None:
        held = self._held.get(key)
        self.found += held is not None
        return held

    def _place(self, key: ExpertKey) -> _Held:
        """A place for `key`, which is not there; waits while all places are on loan."""
        while True:
            if self._closed:
                raise EngineClosed("The engine was closed.", "Load the model again.")
            if (held := self._held.get(key)) is not None:  # another thread's, made while this one waited
                return held
            if (place := self._free_place(key)) is not None:
                break
            self._changed.wait()
        self.read_from_disk += 1
        held = self._held[key] = _Held(place, self._files.transfer_bytes(key))
        self._policy.inserted(key)
        return held

    def _free_place(self, key: ExpertKey) -> torch.Tensor | None:
        if not self._free and self._places_left:
            self._make_places()
        if not self._free and (victim := self._policy.victim(self._in_use, key)) is not None:
            self._free.append(self._held.pop(victim).place)
            self._policy.removed(victim)
        return self._free.pop() if self._free else None

    def _make_places(self) -> None:
        """A further piece of memory; where RAM is used up, the tier stays as large as it is."""
        try:
            made = self._memory.grow(self._places_left)
        except (OSError, MemoryError) as error:
            self._places_left = 0
            if not self.places:
                raise NotEnoughMemory(
                    f"There is no RAM for even one expert on its way to the card: {error}.", "Close other programs."
                ) from error
            return
        self._places_left -= len(made)
        self.places += len(made)
        self._free.extend(made)

    # -- reading --------------------------------------------------------------------------------------------------

    def _read_together(self, key: ExpertKey, held: _Held) -> None:
        while (piece := self._claim(held)) is not None:
            try:
                self._files.read(key, *piece, held.place.numpy())
                if self._is_complete(held, piece):
                    self._index.finish(key, held.place.numpy())
                    self._settle(key, held, None)
            except BaseException as error:  # also Ctrl-C: nobody else may go on waiting for this piece
                self._settle(key, held, error if isinstance(error, Exception) else OSError("reading was interrupted"))
                raise
        with self._lock:
            while not held.ready and held.error is None:
                self._changed.wait()
        if held.error is not None:
            raise held.error

    def _claim(self, held: _Held) -> tuple[int, int] | None:
        with self._lock:
            start = held.claimed_bytes
            if held.error is not None or start == held.total_bytes:
                return None
            held.claimed_bytes = min(start + _READ_BYTES, held.total_bytes)
            return start, held.claimed_bytes

    def _is_complete(self, held: _Held, piece: tuple[int, int]) -> bool:
        with self._lock:
            held.read_bytes += piece[1] - piece[0]
            return held.read_bytes == held.total_bytes and held.error is None

    def _settle(self, key: ExpertKey, held: _Held, error: Exception | None) -> None:
        """The expert is there, or will not come: then the next one who asks for it begins anew."""
        with self._lock:
            held.ready, held.error = error is None, held.error or error
            if error is not None and self._held.get(key) is held:
                del self._held[key]
                self._in_use.discard(key)
                self._policy.removed(key)
            self._changed.notify_all()

    def _give_back(self, key: ExpertKey, held: _Held) -> None:
        with self._lock:
            held.borrowers -= 1
            if held.borrowers:
                return
            if self._held.get(key) is held:
                self._in_use.discard(key)
            elif not self._closed:
                self._free.append(held.place)
            self._changed.notify_all()


class Loan:
    """An expert's bytes (`place`, uint8 [slot_bytes]) that nobody overwrites until `close`; a context manager."""

    __slots__ = ("_held", "_key", "_tier")

    def __init__(self, tier: HostTier, key: ExpertKey, held: _Held) -> None:
        self._tier, self._key = tier, key
        self._held: _Held | None = held

    @property
    def place(self) -> torch.Tensor:
        assert self._held is not None, "the loan is over"
        return self._held.place

    def close(self) -> None:
        """Idempotent."""
        held, self._held = self._held, None
        if held is not None:
            self._tier._give_back(self._key, held)

    def __enter__(self) -> Loan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
