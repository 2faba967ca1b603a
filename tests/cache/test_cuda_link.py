"""The CUDA link on a card that reorders whatever it is free to: order, lifetime, memory. No GPU is needed."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.card_pool import CardPool
from engine.cache.expert_cache import ExpertCache
from engine.cache.host_memory import HostMemory
from engine.cache.host_tier import HostTier
from engine.cache.link import Priority, Transfer
from engine.cache.links.cuda import CudaLink
from engine.cache.policies import LRU, layer_lru
from engine.cache.slot_memory import SlotLayouts
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.expert_key import ExpertKey
from tests.cache.fake_cuda import FakeCard
from tests.cache.test_host_tier import all_keys, bytes_of, index_of


def link_on(card: FakeCard, host_experts: int = 4, slab_rows: int = 3, link_class: type[CudaLink] = CudaLink):
    index = index_of()
    memory = HostMemory(index.slot_bytes, card, piece_bytes=2 * index.slot_bytes)
    pool = CardPool(index.slot_bytes, SlotLayouts(index), card, slab_rows * index.slot_bytes)
    link = link_class(index, HostTier(index, host_experts, memory=memory), card, pool)
    link.chunk_bytes = 4096
    return link


def computing(card: FakeCard, link: CudaLink, key: ExpertKey, slot: int, wrong: list[ExpertKey]) -> None:
    """Enqueues a kernel that reads the expert, whenever the card gets to it."""
    tensors = link.weights(key, slot).tensors

    def read() -> None:
        found = b"".join(tensors[param.name].numpy().tobytes() for param in index_of().params(key.layer))
        if found != bytes_of("mixtral", key):
            wrong.append(key)

    card.compute(read)


def transfer(link: CudaLink, key: ExpertKey, slot: int, priority: Priority = Priority.DEMAND) -> None:
    moving = Transfer(key, slot, link.transfer_bytes(key), priority, priority, 0.0)
    middle = moving.total_bytes // 2 // 4096 * 4096
    link.copy(moving, 0, middle)
    link.copy(moving, middle, moving.total_bytes)
    link.finish(moving)


class Negligent(CudaLink):
    """Does not wait for what is still computed with a slot."""

    def released(self, slots: list[int]) -> None:
        """Forgets it."""


class Hasty(CudaLink):
    """Hands the place in RAM back, and the expert out, before the copy is done."""

    def copy(self, transfer: Transfer, start: int, stop: int) -> None:
        synchronize, self._calls.synchronize = self._calls.synchronize, lambda event: None
        super().copy(transfer, start, stop)
        self._calls.synchronize = synchronize


def wrong_bytes(link_class: type[CudaLink], seed: int, steps: int = 40) -> list[ExpertKey]:
    """A random schedule in one thread: load into a random slot, compute, release; the card dawdles at will."""
    card, chance = FakeCard(seed=seed), random.Random(seed)
    link, keys, wrong = link_on(card, host_experts=2, link_class=link_class), all_keys(index_of()), []
    link.grow([0, 1, 2, 3])
    for _ in range(steps):
        key, slot = chance.choice(keys), chance.randrange(4)
        transfer(link, key, slot, chance.choice(list(Priority)))
        computing(card, link, key, slot, wrong)
        if chance.random() < 0.5:
            computing(card, link, key, slot, wrong)
        link.released([slot])
        card.run_some(chance.randrange(4))
    card.drain()
    link.close()
    return wrong


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_no_schedule_shows_a_kernel_other_bytes_than_its_experts(seed):
    assert wrong_bytes(CudaLink, seed) == []


@pytest.mark.parametrize("careless", [Negligent, Hasty])
def test_the_fake_card_notices_a_missing_wait(careless):
    assert any(wrong_bytes(careless, seed) for seed in range(5))


def compute_layer(cache, card, link, layer, experts, wrong) -> None:
    with cache.acquire(layer, experts) as lease:
        while batch := lease.next_batch():
            for expert, _ in batch:
                key = ExpertKey(layer, expert)
                computing(card, link, key, cache._residency.slot(key), wrong)


@pytest.mark.parametrize("slots", [2, 5, 24])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_cache_over_the_link_computes_with_the_right_bytes(slots, seed):
    """Reader threads, prefill with reading ahead, decoding, resizes in between."""
    index, card, chance, wrong = index_of(), FakeCard(seed=seed), random.Random(seed), []
    link = link_on(card)
    cache = ExpertCache(link, layer_lru(len(index.experts_per_layer)), index.experts_per_layer, slots)
    for step in range(12):
        prefill = step % 4 == 0
        if prefill:
            cache.begin_prefill(64, index.top_k)
        for layer, count in enumerate(index.experts_per_layer):
            experts = range(count) if prefill else chance.sample(range(count), index.top_k)
            routing = torch.tensor([list(experts)])
            cache.observe(layer, None, routing, routing.float())
            compute_layer(cache, card, link, layer, experts, wrong)
        cache.begin_decode()
        cache.check()
        link.tier.check()
        if step % 3 == 2:
            cache.resize(chance.randrange(2, 25))
            slabs = cache.slots * index.slot_bytes
            assert link._pool.nbytes == slabs
    counters = cache.counters()
    cache.close()
    card.drain()
    assert wrong == []
    assert counters["bytes_demand"] and card.calls["copy"]
    assert not card.locked, "page-locked memory was left behind"
    assert card.allocated_bytes == 0


def test_decoding_allocates_nothing_and_waits_for_nothing_on_the_computing_thread():
    """One record for a batch that is released: all that a step with hits costs."""
    index, card = index_of(), FakeCard(lazy=False)
    link = link_on(card, slab_rows=24)
    cache = ExpertCache(link, LRU(), index.experts_per_layer, 24)
    routing = torch.tensor([[0, 1]])
    for _ in range(2):  # the second time everything is there
        before = card.calls.copy()
        for layer in range(len(index.experts_per_layer)):
            cache.observe(layer, None, routing, routing.float())
            with cache.acquire(layer, [0, 1]) as lease:
                while lease.next_batch():
                    """Computing."""
    assert card.calls - before == {"record": len(index.experts_per_layer)}
    cache.close()


def test_new_memory_is_written_only_after_what_was_computed_before_it_was_taken():
    card, happened = FakeCard(seed=4), []
    link = link_on(card)
    card.compute(lambda: happened.append("old"))
    link.grow([0])
    transfer(link, ExpertKey(0, 0), 0)
    assert happened == ["old"]
    link.close()


def test_a_demand_does_not_queue_behind_a_guess_that_waits():
    """The guess's slot is still computed with; the demand's is not: it must arrive without that computing."""
    card, happened = FakeCard(seed=5), []
    link = link_on(card, host_experts=4)
    link.grow([0, 1])
    card.drain()
    card.compute(lambda: happened.append("computed"))
    link.released([0])
    guess = link._streams[Priority.PREFETCH]
    card.wait(guess, link._last_use[0])
    card._compute.queue.appendleft(("stuck", lambda: False))
    transfer(link, ExpertKey(0, 1), 1)
    assert not happened and len(guess.queue) == 1
    card._compute.queue.popleft()
    card.drain()
    link.close()


def test_releases_beyond_those_remembered_are_still_waited_for():
    card, wrong = FakeCard(seed=6), []
    link = link_on(card)
    link.grow([0, 1])
    transfer(link, ExpertKey(0, 0), 0)
    computing(card, link, ExpertKey(0, 0), 0, wrong)
    link.released([0])
    for _ in range(200):
        link.released([1])
    transfer(link, ExpertKey(0, 3), 0)
    card.drain()
    assert wrong == []
    link.close()


moves = st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.randoms(use_true_random=False)), max_size=12)


@settings(max_examples=60)
@given(moves, st.integers(1, 4))
def test_the_pool_keeps_every_slots_bytes_and_holds_no_more_than_its_slots(changes, slab_rows):
    index = index_of()
    card = FakeCard(lazy=False)
    pool = CardPool(index.slot_bytes, SlotLayouts(index), card, slab_rows * index.slot_bytes)
    held: dict[int, int] = {}
    numbers = iter(range(10**6))
    for grows, count, chance in changes:
        if grows:
            new = [next(numbers) for _ in range(count)]
            pool.grow(new)
            for slot in new:
                pool.bytes(slot).fill_(slot % 251)
                held[slot] = slot % 251
        else:
            gone = chance.sample(sorted(held), min(count, len(held)))
            pool.shrink(gone)
            for slot in gone:
                del held[slot]
        assert all((pool.bytes(slot) == byte).all() for slot, byte in held.items())
        rows = [pool.row(slot) for slot in held]
        assert len(set(rows)) == len(rows)
        assert pool.nbytes == card.allocated_bytes == len(held) * index.slot_bytes
    views = [pool.weights(0, slot).tensors["down_proj"] for slot in held]
    assert all(view.is_contiguous() for view in views)


def test_a_pool_that_cannot_grow_stays_as_it_was():
    index = index_of()
    card = FakeCard(card_bytes=10 * index.slot_bytes, lazy=False)
    pool = CardPool(index.slot_bytes, SlotLayouts(index), card, 3 * index.slot_bytes)
    pool.grow(list(range(5)))
    with pytest.raises(torch.OutOfMemoryError):
        pool.grow(list(range(5, 12)))
    assert card.allocated_bytes == 5 * index.slot_bytes
    pool.grow([5, 6])
    card.taken_by_others = card.free_bytes()
    pool.shrink([6])  # trimming a slab would need memory that is not there
    assert card.allocated_bytes <= 7 * index.slot_bytes
    pool.grow([7])
    assert len({pool.row(slot) for slot in (0, 1, 2, 3, 4, 5, 7)}) == 7


def test_views_are_of_the_checkpoints_dtype_and_lie_in_the_slabs():
    index: ExpertIndex = index_of()
    card = FakeCard(lazy=False)
    link = link_on(card)
    link.grow([0, 1, 2, 3])
    transfer(link, ExpertKey(1, 4), 3)
    weights = link.weights(ExpertKey(1, 4), 3)
    row = link._pool.row(3)
    slab = link._pool.slabs[row.slab]
    assert weights.address == slab.data_ptr() + row.number * index.slot_bytes
    for param in index.params(1):
        assert weights.tensors[param.name].dtype == param.dtype
        assert tuple(weights.tensors[param.name].shape) == param.shape
    link.close()
