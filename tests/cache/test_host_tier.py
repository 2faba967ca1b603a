"""The middle tier: the checkpoint's bytes, within its budget, never overwritten while on loan."""

from __future__ import annotations

import threading
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache import host_tier
from engine.cache.host_memory import HostMemory
from engine.cache.host_tier import HostTier
from engine.cache.links.expert_files import ExpertFiles
from engine.cache.policies import LRU
from engine.cache.random_eviction import RandomEviction
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import EngineClosed, NotEnoughMemory
from engine.hardware.host_budget import STAGING_EXPERTS, host_budget
from engine.hardware.memory_plan import GIB
from tests.cache.fake_files import WatchedFiles
from tests.tiny_models import tiny_checkpoint


@cache
def index_of(family: str = "mixtral") -> ExpertIndex:
    return ExpertIndex.from_checkpoint(tiny_checkpoint(family))


@cache
def bytes_of(family: str, key: ExpertKey) -> bytes:
    index, files = index_of(family), ExpertFiles(index_of(family), direct=False)
    slot = np.zeros(index.slot_bytes, np.uint8)
    files.read(key, 0, files.transfer_bytes(key), slot)
    index.finish(key, slot)
    files.close()
    return _parameters(index, key, slot)


def _parameters(index: ExpertIndex, key: ExpertKey, slot: np.ndarray) -> bytes:
    return b"".join(slot[p.offset_bytes : p.offset_bytes + p.nbytes].tobytes() for p in index.params(key.layer))


def holds(index: ExpertIndex, key: ExpertKey, place: torch.Tensor, family: str = "mixtral") -> bool:
    return _parameters(index, key, place.numpy()) == bytes_of(family, key)


def all_keys(index: ExpertIndex) -> list[ExpertKey]:
    return [ExpertKey(layer, n) for layer, count in enumerate(index.experts_per_layer) for n in range(count)]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "phimoe"])
def test_a_model_that_fits_is_read_once(family):
    index = index_of(family)
    files = WatchedFiles(index)
    tier = HostTier(index, len(all_keys(index)), files=files)
    for _ in range(3):
        for key in all_keys(index):
            with tier.borrow(key) as loan:
                assert holds(index, key, loan.place, family)
    assert len(set(files.reads)) == len(all_keys(index)) == tier.read_from_disk
    assert tier.found == 2 * len(all_keys(index))
    tier.check()
    tier.close()
    tier.close()
    assert files.closed


def test_pieces_of_an_expert_are_read_by_all_who_wait_for_it(monkeypatch):
    index = index_of()
    monkeypatch.setattr(host_tier, "_READ_BYTES", 1024)
    files, key = WatchedFiles(index), ExpertKey(1, 3)
    tier = HostTier(index, 4, files=files)
    together = threading.Barrier(3)
    readers: set[int] = set()
    read = files.read

    def read_slowly(*arguments):
        if threading.get_ident() not in readers:
            readers.add(threading.get_ident())
            together.wait(10)  # returns only when all three are reading
        read(*arguments)

    files.read = read_slowly  # type: ignore[method-assign]
    good = []

    def borrow() -> None:
        with tier.borrow(key) as loan:
            good.append(holds(index, key, loan.place))

    threads = [threading.Thread(target=borrow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert good == [True] * 3
    assert len(files.reads) == -(-files.transfer_bytes(key) // 1024)
    tier.close()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 23), st.booleans()), max_size=60), st.integers(1, 6), st.integers(0, 9))
def test_any_order_of_loans_keeps_within_the_budget(moves, experts, seed):
    index = index_of()
    memory = HostMemory(index.slot_bytes, piece_bytes=2 * index.slot_bytes)
    tier = HostTier(index, experts, policy=RandomEviction(seed), memory=memory)
    keys, loans = all_keys(index), []
    for number, keep in moves:
        key = keys[number % len(keys)]
        if len({other for other, _ in loans} | {key}) <= experts:
            loans.append((key, tier.borrow(key)))
        if not keep and loans:
            loans.pop(0)[1].close()
        assert all(holds(index, key, loan.place) for key, loan in loans)
        assert tier.nbytes <= experts * index.slot_bytes
        tier.check()
    for _, loan in loans:
        loan.close()
    tier.check()
    tier.close()


def test_many_threads_and_few_places():
    index = index_of()
    tier = HostTier(index, 3, memory=HostMemory(index.slot_bytes, piece_bytes=index.slot_bytes))
    keys, wrong = all_keys(index), []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for number in random.integers(0, len(keys), 150):
            with tier.borrow(keys[number]) as loan:
                if not holds(index, keys[number], loan.place):
                    wrong.append(keys[number])
            tier.check()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert tier.places == 3 and tier.nbytes == 3 * index.slot_bytes
    tier.close()


def test_who_waits_for_a_place_gets_the_first_that_is_returned():
    index = index_of()
    tier = HostTier(index, 1)
    loan = tier.borrow(ExpertKey(0, 0))
    got: list[bool] = []

    def want() -> None:
        with tier.borrow(ExpertKey(0, 1)) as other:
            got.append(holds(index, ExpertKey(0, 1), other.place))

    thread = threading.Thread(target=want)
    thread.start()
    assert holds(index, ExpertKey(0, 0), loan.place)
    loan.close()
    thread.join(20)
    assert got == [True]
    tier.close()
    with pytest.raises(EngineClosed):
        tier.borrow(ExpertKey(0, 2))


@pytest.mark.parametrize("error", [OSError("injected"), KeyboardInterrupt()])
def test_a_failed_read_leaves_nothing_behind(error):
    index, key = index_of(), ExpertKey(2, 1)
    tier = HostTier(index, 1, files=WatchedFiles(index, {0: error}))
    with pytest.raises(type(error)):
        tier.borrow(key)
    tier.check()
    with tier.borrow(key) as loan:
        assert holds(index, key, loan.place)
    tier.close()


def test_all_who_wait_hear_of_a_failed_read():
    index, key, heard = index_of(), ExpertKey(0, 5), []
    files = WatchedFiles(index)
    waiting, go = threading.Event(), threading.Event()

    def fail(*_arguments):
        waiting.set()
        go.wait(10)
        raise OSError("injected")

    files.read = fail  # type: ignore[method-assign]
    tier = HostTier(index, 2, files=files)

    def want() -> None:
        try:
            tier.borrow(key)
        except OSError as error:
            heard.append(str(error))

    threads = [threading.Thread(target=want) for _ in range(2)]
    threads[0].start()
    waiting.wait(10)
    threads[1].start()
    while tier.found == 0:
        threading.Event().wait(0.001)
    go.set()
    for thread in threads:
        thread.join(10)
    assert heard == ["injected", "injected"]
    tier.check()
    tier.close()


def test_filling_at_the_start_tells_how_far_it_is_and_can_be_stopped():
    index, told = index_of(), []
    tier = HostTier(index, 10)
    assert tier.fill(lambda *news: told.append(news)) == 10
    assert told[-1] == (host_tier.STAGE, 10, 10) and len(told) == 10
    assert tier.read_from_disk == 10
    other = HostTier(index, 10)
    assert other.fill(stopped=lambda: other.read_from_disk == 4) == 4
    tier.close()
    other.close()


class Driver:
    """Locks at most `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self.left, self.locked, self.refused = limit_bytes, {}, 0

    def lock(self, address: int, nbytes: int) -> bool:
        if nbytes > self.left:
            self.refused += 1
            return False
        self.left -= nbytes
        self.locked[address] = nbytes
        return True

    def unlock(self, address: int) -> None:
        self.left += self.locked.pop(address)


def test_memory_is_locked_piece_by_piece_and_what_is_refused_is_said():
    driver = Driver(5 * 4096)
    memory = HostMemory(4096, driver, piece_bytes=2 * 4096)
    places = [place for _ in range(4) for place in memory.grow(2)]
    assert len({place.data_ptr() for place in places}) == 8
    assert (memory.locked_bytes, memory.pageable_bytes) == (4 * 4096, 4 * 4096)
    assert driver.refused == 1  # one refusal is enough
    assert "locked only" in memory.problem
    memory.close()
    memory.close()
    assert not driver.locked
    assert HostMemory(4096, Driver(1 << 20)).problem is None
    assert HostMemory(4096).problem is None
    assert len(HostMemory(4096, piece_bytes=100).grow(9)) == 1  # an expert larger than a piece


class UsedUp(HostMemory):
    """RAM for `pieces` pieces."""

    pieces = 1

    def grow(self, places: int) -> list[torch.Tensor]:
        if not self.pieces:
            raise OSError(12, "Cannot allocate memory")
        self.pieces -= 1
        return super().grow(places)


def test_a_tier_that_gets_less_ram_than_planned_goes_on_with_it():
    index = index_of()
    tier = HostTier(index, 8, memory=UsedUp(index.slot_bytes, piece_bytes=2 * index.slot_bytes))
    for key in all_keys(index):
        with tier.borrow(key) as loan:
            assert holds(index, key, loan.place)
    assert tier.places == 2
    tier.close()
    nothing = UsedUp(index.slot_bytes)
    nothing.pieces = 0
    tier = HostTier(index, 8, memory=nothing)
    with pytest.raises(NotEnoughMemory, match="no RAM"):
        tier.borrow(ExpertKey(0, 0))
    tier.close()


def test_a_scan_larger_than_the_tier_finds_most_of_what_fits():
    """Two prompts over all experts with room for three quarters: LRU finds nothing again."""
    index = index_of()
    found = {}
    for name, policy in {"lru": LRU(), "random": RandomEviction()}.items():
        tier = HostTier(index, 18, policy=policy)
        for _ in range(6):
            for key in all_keys(index):
                tier.borrow(key).close()
        found[name] = tier.found / (5 * len(all_keys(index)))
        tier.close()
    assert found["lru"] == 0.0
    assert found["random"] > 0.35


@given(st.integers(0, 500 * GIB), st.integers(4096, 400 << 20), st.integers(1, 20000))
def test_the_budget_stays_below_what_is_free(available, expert_bytes, total):
    budget = host_budget(available, expert_bytes, total)
    assert 1 <= budget.experts <= total
    assert budget.experts <= STAGING_EXPERTS or budget.nbytes <= max(0, available - 2 * GIB)
    assert host_budget(available + GIB, expert_bytes, total).experts >= budget.experts
    assert budget.reason.endswith(".")


def test_the_budget_says_why():
    assert "read once" in host_budget(64 * GIB, 10 << 20, 1000).reason
    assert "RAM holds" in host_budget(16 * GIB, 10 << 20, 6000).reason
    assert "Only" in host_budget(GIB, 100 << 20, 6000).reason
