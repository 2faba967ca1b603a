"""The expert cache: what the computation asks for experts, and the one owner of residency.

Acquire -> wait for what is not there -> compute -> release; everything else (policy, queue, link) is composed here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from engine.cache.direct_use import DirectUse
from engine.cache.host_compute import HostCompute
from engine.cache.link import ExpertWeights, Link, Priority, Transfer
from engine.cache.policies import EvictionPolicy
from engine.cache.prefill_stream import PrefillStream
from engine.cache.residency import Residency
from engine.cache.speculation import Speculation
from engine.cache.timed_transfers import TimedLink, WallClockTransfers
from engine.cache.transfer_queue import OnMoved, OnTransfer, TransferQueue
from engine.cache.transfers import Transfers
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import Cancelled, EngineClosed, EngineError, TransferFailed
from engine.metrics import CacheCounters
from engine.routing.prefetcher import Prefetcher
from engine.routing.wave_prefetcher import WavePrefetcher

RoutingListener = Callable[[int, Any, Any, Any], None]
"""Told what `ExpertCache.observe` is told."""

MakeTransfers = Callable[[Any, threading.Lock, OnMoved, OnTransfer, OnTransfer], TransferQueue]


class Phase(IntEnum):
    """Index into the counters that are kept apart."""

    DECODE = 0
    PREFILL = 1


class ExpertCache:
    """Holds experts in `slots` near slots and serves the computation from them. One thread computes at a time."""

    def __init__(
        self,
        link: Link,
        policy: EvictionPolicy,
        experts_per_layer: Sequence[int],
        slots: int,
        on_routing: RoutingListener | None = None,
        last_row_only: bool = False,
        make_transfers: MakeTransfers | None = None,
        prefetcher: Prefetcher | None = None,
        waves: WavePrefetcher | None = None,
    ) -> None:
        """`prefetcher` foresees steps that read one chat's token, `waves`, given beside it, those of several chats."""
        self._link = link
        self._experts_per_layer = tuple(experts_per_layer)
        self._residency = Residency(policy)
        self._stream = PrefillStream(self._residency, len(experts_per_layer), max(experts_per_layer))
        self._lock = threading.Lock()
        self._counters = CacheCounters.zero()
        self._transfers = (make_transfers or _transfers_for(link))(
            link, self._lock, self._on_moved, self._on_arrival, self._on_failure
        )
        self._on_routing = on_routing
        self._prefetcher, self._waves = prefetcher, waves
        self._speculation = (
            None
            if prefetcher is None
            else Speculation(self._residency, self._transfers, prefetcher, self._book_evictions)
        )
        self._host = HostCompute() if link.computes_on_host else None
        self._can_foresee = False  # in the step in progress
        self._foreseen_rows: int | slice = 0  # of it: the only one, or all
        self._step_began = 0.0, 0.0
        self._demand_arrived_at = 0.0
        self._unread: set[ExpertKey] = set()  # prefetched, not read yet
        self._failed: dict[ExpertKey, Exception] = {}
        self._ahead: deque[ExpertKey] = deque()
        self._read_ahead = False
        self._layers_read_whole = len(experts_per_layer) - last_row_only  # see `experts.attach`
        self._cancelled: Callable[[], bool] = lambda: False
        self._phase = Phase.DECODE
        self._rows = np.zeros(max(experts_per_layer), np.int64)  # of the computing layer's experts, in prefill
        self._closed = False
        self._slot_ids = 0
        self._use_counts = np.zeros((len(experts_per_layer), max(experts_per_layer)), np.int64)
        self._direct: DirectUse | None = None  # from when somebody asks for addresses
        self._never = np.zeros(len(experts_per_layer), np.bool_)
        with self._lock:
            self._add_slots(slots)

    @property
    def foresees(self) -> bool:
        """Whether the next step will be predicted: not where every expert is there, nor while it does not pay."""
        return self._misses_something and self._prefetcher is not None and self._prefetcher.on

    @property
    def foresees_joint_passes(self) -> bool:
        """Whether the next joint pass will be predicted, as far as is known before its number of chats."""
        return self._misses_something and self._waves is not None and self._waves.on

    @property
    def _foresees_this_pass(self) -> bool:
        return self._can_foresee and self._waves is not None and self._waves.in_joint_pass and self._waves.on

    @property
    def _foretold(self) -> Prefetcher | None:
        """Who foresees the step in progress, where it reads one chat's token and is predicted."""
        joint = self._waves is not None and self._waves.in_joint_pass
        prefetcher = self._prefetcher
        return prefetcher if self._can_foresee and not joint and prefetcher is not None and prefetcher.on else None

    @property
    def _misses_something(self) -> bool:
        return len(self._residency) < sum(self._experts_per_layer)

    # -- what the computation calls -------------------------------------------------------------------------------

    def begin_step(self, token_id: int) -> None:
        """A decoding step reads `token_id`: what it will probably need sets out before anything is computed."""
        self._can_foresee = self._misses_something
        if self._can_foresee and self._speculation is not None and self._prefetcher is not None:
            began, asked = self._transfers.now(), time.perf_counter()
            self._prefetcher.predict(token_id)
            with self._lock:
                self._transfers.settle()
                self._step_began = began, self._counters.stall_seconds[Phase.DECODE]
                if self._waves is not None:
                    self._waves.other_step()
                self._speculation.prefetcher, self._foreseen_rows = self._prefetcher, 0
                self._prefetcher.begin_step()
                self._speculation.pump()  # nothing is computed yet: there is nothing to guard
                self._counters.prediction_seconds += time.perf_counter() - asked

    def begin_joint_step(self, expected: np.ndarray | None = None) -> None:
        """A decoding step reads a token of each of several chats, or of one in turn.

        `expected` float32 [chats, horizon, layers, experts]: how likely each one's token, and those after it, use each
        expert, where a predictor was asked (`RoutingPredictor.predict`, for each).
        """
        self._can_foresee = self._misses_something and self._waves is not None
        with self._lock:
            self._pause_speculation()  # what a chat's own step foresaw takes no slots of a pass that nothing guards
        if self._can_foresee and self._speculation is not None and self._waves is not None:
            asked = time.perf_counter()
            with self._lock:
                self._transfers.settle()
                self._step_began = self._transfers.now(), self._counters.stall_seconds[Phase.DECODE]
                self._speculation.prefetcher, self._foreseen_rows = self._waves, slice(None)
                self._waves.begin_pass(expected)
                self._speculation.pump()
                self._counters.prediction_seconds += time.perf_counter() - asked

    def observe(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        """The real routing of `layer` for all rows of this step, told before `acquire`; ids and weights [rows, k].

        `hidden` [rows, width] fp32: what the router saw. The listener is told the same, in prefill and decoding.
        """
        if self._on_routing is not None:
            self._on_routing(layer, hidden, top_k_index, top_k_weights)
        if self._phase is Phase.PREFILL:
            ids = np.asarray(top_k_index).reshape(-1)
            self._rows = np.bincount(ids[ids >= 0], minlength=self._experts_per_layer[layer])
        elif self._can_foresee and self._speculation is not None:
            rows = self._foreseen_rows  # `acquire` will take them into account
            self._speculation.routing = layer, hidden, np.asarray(top_k_index)[rows], np.asarray(top_k_weights)[rows]

    def acquire(self, layer: int, experts: Sequence[int]) -> Lease:
        """Starts loading what is missing of these distinct experts. Returns a lease that hands them out as they
        become ready. Counts a hit, late or miss for each at this moment (design: "activation"). Raises Cancelled.
        """
        keys = [ExpertKey(layer, expert) for expert in experts]
        if self._phase is Phase.PREFILL and self._cancelled():
            raise Cancelled
        with self._lock:
            self._raise_if_closed()
            self._transfers.settle()  # whatever followed an arrival was decided without knowing this layer's routing
            self._count_direct_use()
            self._guard_from(layer)
            lease = Lease(self, keys)
            self._classify(keys)
            if self._phase is Phase.PREFILL:
                lease.unscheduled.sort(key=lambda key: -self._rows[key.expert])  # the most used are kept
                self._stream.skipped(layer, set(keys))
                self._plan_read_ahead(layer)
            if self._host is not None and self._phase is Phase.DECODE:
                self._leave_on_host(lease, self._host)
            self._schedule(lease)
            if self._phase is Phase.DECODE and self._can_foresee and self._speculation is not None:
                began = time.perf_counter()  # after what is demanded has set out: this takes time beside it
                self._counters.bytes_prefetch_cancelled += self._speculation.correct()
                self._counters.prediction_seconds += time.perf_counter() - began
        return lease

    def addresses(self) -> np.ndarray | None:
        """int64 [layers, experts]: where experts lie that may be computed with in this decoding step without being
        acquired; 0 for all others. It changes with residency. Nobody of a layer up to the next one that pauses leaves
        but by `acquire` or `routed`: guesses, which may be loaded meanwhile, take no slots there. None where a joint
        pass is foreseen, or the link has to be told what is computed with.
        """
        with self._lock:
            self._raise_if_closed()
            if self._link.tells_release or self._foresees_this_pass:
                return None
            if self._direct is None:
                self._direct = DirectUse(self._use_counts)
                for key in self._residency:
                    if self._residency.is_resident(key):
                        self._direct.addresses[key] = self._weights(key).address
            self._transfers.settle()
            return self._direct.addresses

    def pauses(self) -> np.ndarray:
        """bool [layers]: of which layers' routing `routed` wants to be told in this step before they are computed."""
        foretold = self._foretold
        return self._never if foretold is None else foretold.pauses

    def routed(self, layer: int, rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """`layer`, which pauses, has been routed: what its router saw, [width], and its experts and weights, [top k].

        What was foreseen is corrected. Until `acquire` or the next `routed` nobody leaves of the layers up to the next
        one that pauses.
        """
        began = time.perf_counter()
        hidden, experts, weights = rows
        with self._lock:
            self._raise_if_closed()
            self._transfers.settle()
            self._guard_from(layer)
            assert self._speculation is not None
            self._speculation.routing = layer, hidden, experts, weights
            self._counters.bytes_prefetch_cancelled += self._speculation.correct()
            self._counters.prediction_seconds += time.perf_counter() - began

    def computed(
        self, first: int, told: Sequence[tuple[Any, Any, Any]], experts: np.ndarray, weights: np.ndarray | None
    ) -> None:
        """Layers `first`, `first` + 1, ... were computed with experts at their addresses: what `observe` would have
        been told of each, and their distinct ids, [layers, any]; in a step that reads one chat's token also the weights
        of these. Each counts as a hit.
        """
        if self._on_routing is not None:
            for layer, of_layer in enumerate(told, first):
                self._on_routing(layer, *of_layer)
        with self._lock:
            assert self._direct is not None
            self._direct.used(first, experts)
            if weights is not None and (foretold := self._foretold) is not None:
                foretold.passed(first, experts, weights)

    def begin_prefill(self, tokens: int, top_k: int, cancelled: Callable[[], bool] = lambda: False) -> None:
        """The next steps process `tokens` rows at once: stream experts, reading ahead if most will be needed.

        As soon as `cancelled()`, `acquire` raises Cancelled: a pass takes seconds, a layer a fraction of one.
        """
        with self._lock:
            self._count_direct_use()
            self._cancelled = cancelled
            self._phase = Phase.PREFILL
            self._pause_speculation()
            self._read_ahead = tokens * top_k >= 2 * max(self._experts_per_layer)
            self._stream.begin()

    def begin_decode(self) -> None:
        with self._lock:
            self._phase = Phase.DECODE
            self._ahead.clear()

    def step_ended(self) -> None:
        """One token is done: policies that know time take note."""
        with self._lock:
            self._residency.guard(range(0))
            if self._direct is not None and self._direct.is_waiting:
                self._direct.step_ended()
                if self._direct.is_full:
                    self._count_direct_use()
            else:
                self._residency.policy.step_ended()
            if self._can_foresee and self._speculation is not None:
                began, waited = self._step_began
                waited = self._counters.stall_seconds[Phase.DECODE] - waited
                ended = time.perf_counter()
                self._speculation.prefetcher.end_step(self._transfers.now() - began, waited)
                self._counters.prediction_seconds += time.perf_counter() - ended

    # -- what the owner calls -------------------------------------------------------------------------------------

    def resize(self, slots: int) -> None:
        """Grows or shrinks to `slots`. Call between steps: nothing may be leased. Memory is given back at once."""
        with self._lock:
            self._raise_if_closed()
            self._count_direct_use()
            self._drain()
            surplus = self._residency.slots - slots
            if surplus > 0:
                dropped = self._residency.drop_slots(slots)
                self._book_evictions()
                self._link.shrink(dropped)
            elif surplus < 0:
                self._add_slots(-surplus)

    def counters(self) -> dict[str, Any]:
        """The cache's part of EngineStats' fields."""
        with self._lock:
            self._count_direct_use()
            return self._counters.to_stats_fields()

    def host_compute_words(self) -> str:
        """Where absent experts are computed, in one sentence; empty where there is no choice."""
        with self._lock:
            misses = self._counters.misses[Phase.DECODE]
            return "" if self._host is None else self._host.words(self._counters.computed_far, misses)

    @property
    def slots(self) -> int:
        with self._lock:
            return self._residency.slots

    def resident_bytes(self, slot_bytes: int) -> int:
        """Near memory that filled slots take; untouched slots take none yet."""
        with self._lock:
            return len(self._residency) * slot_bytes

    def residency_map(self) -> np.ndarray:
        """[layers, experts] uint8: 0 absent, 1 arriving, 2 resident."""
        state = np.zeros(self._use_counts.shape, np.uint8)
        with self._lock:
            for key in self._residency:
                state[key] = 2 if self._residency.is_resident(key) else 1
        return state

    def use_counts(self) -> np.ndarray:
        """[layers, experts] int64: decoding activations since load."""
        with self._lock:
            self._count_direct_use()
            return self._use_counts.copy()

    def check(self) -> None:
        """Raises AssertionError when an invariant is broken (for tests)."""
        with self._lock:
            self._residency.check()

    def close(self) -> None:
        """Stops the readers and frees the near memory. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._transfers.close()
        self._link.close()

    # -- leases (called with the lock held) -----------------------------------------------------------------------

    def _classify(self, keys: list[ExpertKey]) -> None:
        counters, phase = self._counters, self._phase
        for key in keys:
            transfer = self._transfers.active(key)
            if self._residency.is_resident(key):
                counters.hits[phase] += 1
            elif transfer is not None and transfer.started:
                counters.late[phase] += 1
            else:
                counters.misses[phase] += 1
            self._residency.policy.used(key)
            if phase is Phase.DECODE:
                self._use_counts[key] += 1

    def _schedule(self, lease: Lease) -> None:
        """Pins what is there or coming (first, so that no load evicts it), then loads what is not."""
        absent = []
        for key in lease.unscheduled:
            if self._residency.slot(key) is None:
                absent.append(key)
                continue
            transfer = self._transfers.active(key)
            if transfer is not None:
                self._transfers.promote(transfer, Priority.DEMAND)
            self._pin(lease, key)
        lease.unscheduled = [key for key in absent if not self._load(lease, key)]
        if not lease.unscheduled:
            self._pump_read_ahead()

    def _leave_on_host(self, lease: Lease, host: HostCompute) -> None:
        """Of what is absent, what the processor computes sooner than the link brings it."""
        absent = [key for key in lease.unscheduled if self._residency.slot(key) is None]
        count = host.share(len(absent))
        lease.on_host = absent[len(absent) - count :]
        lease.unscheduled = [key for key in lease.unscheduled if key not in lease.on_host]
        self._counters.computed_far += count

    def _load(self, lease: Lease, key: ExpertKey) -> bool:
        if not self._start(key, Priority.DEMAND, patient=bool(lease.waiting_for)):
            return False
        self._pin(lease, key)
        return True

    def _pin(self, lease: Lease, key: ExpertKey) -> None:
        self._residency.pin(key)
        lease.waiting_for.append(key)

    def _start(self, key: ExpertKey, origin: Priority, patient: bool) -> bool:
        prefill = self._phase is Phase.PREFILL
        slot = self._stream.reserve(key, patient) if prefill else self._residency.reserve(key)
        self._book_evictions()
        if slot is None:
            return False
        self._transfers.start(key, slot, origin)
        return True

    def _next_batch(self, lease: Lease) -> list[tuple[int, ExpertWeights]]:
        self._release(lease)
        while lease.waiting_for or lease.unscheduled or lease.on_host:
            self._raise_if_closed()
            self._transfers.settle()
            self._raise_if_failed(lease)
            if lease.unscheduled:
                self._schedule(lease)
            ready = [key for key in lease.waiting_for if self._residency.is_resident(key)]
            if ready:
                return self._hand_out(lease, ready)
            if lease.on_host:
                return self._hand_out_on_host(lease)
            started = self._transfers.now()
            self._transfers.wait()
            self._counters.stall_seconds[self._phase] += self._transfers.now() - started
        return []

    def _hand_out(self, lease: Lease, ready: list[ExpertKey]) -> list[tuple[int, ExpertWeights]]:
        lease.handed_out = ready
        lease.waiting_for = [key for key in lease.waiting_for if key not in ready]
        for key in ready:
            self._book_read(key)
        return [(key.expert, self._weights(key)) for key in ready]

    def _hand_out_on_host(self, lease: Lease) -> list[tuple[int, ExpertWeights]]:
        """One at a time, so that what arrives meanwhile is not kept waiting."""
        key = lease.on_host.pop()
        began = self._transfers.now()
        weights = self._host_weights(key)
        lease.computing_on_host = key, began
        return [(key.expert, weights)]

    def _host_weights(self, key: ExpertKey) -> ExpertWeights:
        self._lock.release()  # it may have to be read from the disk, and transfers must go on meanwhile
        try:
            return self._link.host_weights(key)
        except OSError as error:
            raise _unreadable(key, error) from error
        finally:
            self._lock.acquire()

    def _released_on_host(self, key: ExpertKey, began: float) -> None:
        self._link.host_released(key)
        if least := self._link.host_seconds(key):
            self._transfers.pass_until(began + least)
        seconds = self._transfers.now() - began
        self._counters.computed_far_seconds += seconds
        assert self._host is not None
        self._host.computed(seconds)
        idle = not self._transfers.in_flight and self._residency.slot(key) is None
        if idle and not self._can_foresee:  # else the prefetcher says what is worth a slot
            self._start(key, Priority.PREFETCH, patient=True)

    def _weights(self, key: ExpertKey) -> ExpertWeights:
        slot = self._residency.slot(key)
        assert slot is not None
        return self._link.weights(key, slot)

    def _release(self, lease: Lease) -> None:
        if self._link.tells_release and lease.handed_out:
            slots = [self._residency.slot(key) for key in lease.handed_out]
            self._link.released([slot for slot in slots if slot is not None])
        for key in lease.handed_out:
            self._residency.unpin(key)
        if self._phase is Phase.PREFILL:
            self._stream.consumed(lease.handed_out)
            if not lease.unscheduled:
                self._pump_read_ahead()
        lease.handed_out = []
        if lease.computing_on_host is not None:
            on_host, lease.computing_on_host = lease.computing_on_host, None
            self._released_on_host(*on_host)

    def _abandon(self, lease: Lease) -> None:
        self._release(lease)
        for key in lease.waiting_for:
            self._residency.unpin(key)
            self._failed.pop(key, None)
        lease.waiting_for, lease.unscheduled, lease.on_host = [], [], []

    # -- reading ahead in prefill ---------------------------------------------------------------------------------

    def _plan_read_ahead(self, layer: int) -> None:
        self._ahead.clear()
        if self._read_ahead and layer + 1 < self._layers_read_whole:
            self._ahead.extend(ExpertKey(layer + 1, expert) for expert in range(self._experts_per_layer[layer + 1]))

    def _pump_read_ahead(self) -> None:
        while self._phase is Phase.PREFILL and self._ahead:
            if self._residency.slot(self._ahead[0]) is None and not self._start(
                self._ahead[0], Priority.PREFETCH, True
            ):
                return
            self._ahead.popleft()

    # -- transfers report (called with the lock held) -------------------------------------------------------------

    def _on_moved(self, transfer: Transfer, nbytes: int) -> None:
        if transfer.origin is Priority.DEMAND:
            self._counters.bytes_demand += nbytes
        elif transfer.origin is Priority.CORRECTION:
            self._counters.bytes_correction += nbytes
        else:
            self._counters.bytes_prefetch_moved += nbytes

    def _on_arrival(self, transfer: Transfer) -> None:
        self._residency.publish(transfer.key)
        if self._direct is not None:
            self._direct.addresses[transfer.key] = self._weights(transfer.key).address
        if self._host is not None and transfer.origin is Priority.DEMAND:
            self._host.transferred(self._transfers.now() - max(transfer.submitted_at, self._demand_arrived_at))
            self._demand_arrived_at = self._transfers.now()
        if transfer.origin is Priority.PREFETCH:
            self._unread.add(transfer.key)
        if self._speculation is not None:
            self._speculation.ended(transfer)
            if self._phase is Phase.DECODE and not self._closed:
                self._speculation.pump()

    def _on_failure(self, transfer: Transfer) -> None:
        key, was_guess = transfer.key, transfer.origin is not Priority.DEMAND
        if transfer.origin is Priority.PREFETCH:
            self._counters.bytes_prefetch_wasted += transfer.moved_bytes
        if self._speculation is not None:
            self._speculation.ended(transfer)
        if was_guess and self._residency.is_pinned(key):  # needed after all: a failed guess must not fail the answer
            self._transfers.start(key, transfer.slot, Priority.DEMAND)
            return
        self._stream.evicted(key)
        self._residency.abort(key)
        if self._residency.is_pinned(key):
            assert transfer.error is not None
            self._failed[key] = transfer.error

    # -- bookkeeping ----------------------------------------------------------------------------------------------

    def _guard_from(self, layer: int) -> None:
        """Layers up to the next pause may be computed without being acquired."""
        if self._direct is not None and (foretold := self._foretold) is not None:
            self._residency.guard(foretold.until_pause[layer])

    def _count_direct_use(self) -> None:
        if self._direct is not None and self._direct.is_waiting:
            policy = self._residency.policy
            used = self._used_unread if self._unread else policy.used
            self._counters.hits[Phase.DECODE] += self._direct.count(used, policy.step_ended)

    def _used_unread(self, key: ExpertKey) -> None:
        self._residency.policy.used(key)
        self._book_read(key)

    def _book_read(self, key: ExpertKey) -> None:
        """`key` is computed with: if it came on a guess, that was right."""
        if key in self._unread:
            self._unread.discard(key)
            self._counters.bytes_prefetch_used += self._link.transfer_bytes(key)

    def _add_slots(self, count: int) -> None:
        slots = list(range(self._slot_ids, self._slot_ids + count))
        self._slot_ids += count
        self._link.grow(slots)
        self._residency.add_slots(slots)

    def _book_evictions(self) -> None:
        for key in self._residency.evicted:
            self._counters.evictions += 1
            if self._direct is not None:
                self._direct.addresses[key] = 0
            self._stream.evicted(key)
            if key in self._unread:
                self._count_direct_use()  # perhaps it was read
            if key in self._unread:
                self._unread.discard(key)
                self._counters.bytes_prefetch_wasted += self._link.transfer_bytes(key)
        self._residency.evicted.clear()

    def _drain(self) -> None:
        """Cancels what is queued and waits for what is moving, so that slots can be given up."""
        self._ahead.clear()
        self._transfers.settle()
        self._pause_speculation()
        for transfer in self._transfers.cancel_queued():
            if self._speculation is not None:
                self._speculation.ended(transfer)
            self._stream.evicted(transfer.key)
            self._residency.abort(transfer.key)
        while self._transfers.in_flight:
            self._raise_if_closed()
            self._transfers.wait()

    def _pause_speculation(self) -> None:
        if self._speculation is not None:
            self._speculation.prefetcher.pause()

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise EngineClosed("The engine was closed.", "Load the model again.")

    def _raise_if_failed(self, lease: Lease) -> None:
        failed = [key for key in lease.waiting_for if key in self._failed]
        if not failed:
            return
        error = self._failed.pop(failed[0])
        self._abandon(lease)
        if isinstance(error, EngineError):
            raise error
        raise _unreadable(failed[0], error) from error


def _unreadable(key: ExpertKey, error: Exception) -> TransferFailed:
    return TransferFailed(
        f"Expert {key.expert} of layer {key.layer} could not be read: {error}.",
        "Check the disk or the folder the model is in, then ask again; the chat is kept.",
    )


def _transfers_for(link: Link) -> MakeTransfers:
    return WallClockTransfers if isinstance(link, TimedLink) else Transfers


class Lease:
    """One layer's experts in use. Handed-out experts stay pinned until the next batch is asked for or it closes."""

    __slots__ = ("_cache", "computing_on_host", "handed_out", "on_host", "unscheduled", "waiting_for")

    def __init__(self, cache: ExpertCache, keys: list[ExpertKey]) -> None:
        self._cache = cache
        self.unscheduled = keys  # no slot yet
        self.waiting_for: list[ExpertKey] = []  # pinned, resident or on the way
        self.handed_out: list[ExpertKey] = []  # pinned, being computed with
        self.on_host: list[ExpertKey] = []  # to be computed where they wait
        self.computing_on_host: tuple[ExpertKey, float] | None = None  # and since when

    def next_batch(self) -> list[tuple[int, ExpertWeights]]:
        """Blocks until at least one further expert is ready; returns all that are (residents first), [] at the end.

        Releases the previous batch. Raises TransferFailed when an expert cannot be read, EngineClosed.
        """
        with self._cache._lock:
            return self._cache._next_batch(self)

    def close(self) -> None:
        """Releases whatever is still held. Idempotent."""
        with self._cache._lock:
            self._cache._abandon(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
