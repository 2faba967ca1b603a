"""The links against the checkpoint's files: same bytes by every way, errors in words."""

from __future__ import annotations

import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open

from engine.cache.expert_cache import ExpertCache
from engine.cache.link import Priority, Transfer
from engine.cache.links import open_link
from engine.cache.policies import LRU
from engine.cache.timed_transfers import EmulatedSpeed
from engine.cache.transfers import Transfers
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.expert_key import ExpertKey
from engine.errors import CheckpointCorrupt, InvalidSetting
from tests.cache.memory_link import MemoryLink
from tests.tiny_models import tiny_checkpoint

LINKS = ["disk", "disk:direct", "emulated:10GBps+5us"]


def load_one(cache: ExpertCache, key: ExpertKey) -> dict[str, torch.Tensor]:
    with cache.acquire(key.layer, [key.expert]) as lease:
        [(_, weights)] = lease.next_batch()
        return {name: tensor.clone() for name, tensor in weights.tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("link", LINKS)
def test_every_link_brings_the_checkpoints_own_bytes(link, dtype):
    path = tiny_checkpoint("mixtral", dtype)
    index = ExpertIndex.from_checkpoint(path)
    cache = ExpertCache(open_link(link, index), LRU(), index.experts_per_layer, 3)
    try:
        with safe_open(path / "model.safetensors", "pt") as file:
            names = list(file.keys())
            for key in (ExpertKey(0, 0), ExpertKey(1, 5), ExpertKey(2, 7), ExpertKey(0, 1)):
                prefix = next(
                    name for name in names if f"layers.{key.layer}." in name and f"experts.{key.expert}." in name
                )
                prefix = prefix[: prefix.index("experts.")] + f"experts.{key.expert}."
                w1, w2, w3 = (file.get_tensor(f"{prefix}{part}.weight") for part in ("w1", "w2", "w3"))
                loaded = load_one(cache, key)
                assert torch.equal(loaded["gate_up_proj"], torch.cat([w1, w3]))
                assert torch.equal(loaded["down_proj"], w2)
    finally:
        cache.close()


@pytest.mark.parametrize("link", ["disk", "disk:direct"])
def test_a_file_cut_short_while_in_use_is_named(link, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("mixtral"), path)
    index = ExpertIndex.from_checkpoint(path)
    cache = ExpertCache(open_link(link, index), LRU(), index.experts_per_layer, 3)
    try:
        os.truncate(path / "model.safetensors", 5000)
        last = ExpertKey(len(index.experts_per_layer) - 1, index.experts_per_layer[-1] - 1)
        with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors ended"):
            for layer, count in enumerate(index.experts_per_layer):
                for expert in range(count):
                    load_one(cache, ExpertKey(layer, expert))
        assert last.layer >= 0
        cache.check()
    finally:
        cache.close()


def test_closing_leaves_no_file_open():
    index = ExpertIndex.from_checkpoint(tiny_checkpoint("mixtral"))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for link in LINKS:
        cache = ExpertCache(open_link(link, index), LRU(), index.experts_per_layer, 3)
        load_one(cache, ExpertKey(0, 0))
        cache.close()
        cache.close()
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before


def test_emulated_speeds_are_read_or_refused():
    assert EmulatedSpeed.parse("emulated:2.5GBps") == EmulatedSpeed(2.5e9)
    assert EmulatedSpeed.parse("emulated:800MBps+20us") == EmulatedSpeed(8e8, 20e-6)
    for wrong in ("emulated:", "emulated:fast", "emulated:0GBps", "emulated:1GBps+2ms"):
        with pytest.raises(InvalidSetting, match="not an emulated link"):
            EmulatedSpeed.parse(wrong)
    index = ExpertIndex.from_checkpoint(tiny_checkpoint("mixtral"))
    with pytest.raises(InvalidSetting, match="CUDA"):
        open_link("cuda", index)
    with pytest.raises(InvalidSetting, match="no link"):
        open_link("network", index)


class Recorder:
    """Transfers over a link whose reader is held until told to go on."""

    def __init__(self) -> None:
        self.link = MemoryLink(readers=1)
        self.go = threading.Semaphore(0)
        copy = self.link.copy

        def held_copy(transfer: Transfer, start: int, stop: int) -> None:
            self.go.acquire()
            copy(transfer, start, stop)

        self.link.copy = held_copy  # type: ignore[method-assign]
        self.link.grow(list(range(8)))
        self.lock = threading.Lock()
        self.arrived: list[ExpertKey] = []
        self.transfers = Transfers(
            self.link, self.lock, lambda *_: None, lambda t: self.arrived.append(t.key), lambda *_: None
        )

    def finish(self, chunks: int) -> None:
        for _ in range(chunks):
            self.go.release()
        deadline = time.monotonic() + 10
        while self.transfers.in_flight and time.monotonic() < deadline:
            time.sleep(0.001)
        self.transfers.close()


def test_a_demand_overtakes_a_prefetch_between_chunks():
    recorder = Recorder()
    with recorder.lock:
        recorder.transfers.start(ExpertKey(0, 1), 0, Priority.PREFETCH)
        recorder.transfers.start(ExpertKey(0, 2), 1, Priority.CORRECTION)
    while not any(t.started for t in recorder.transfers._active.values()):
        time.sleep(0.001)
    with recorder.lock:
        recorder.transfers.start(ExpertKey(0, 3), 2, Priority.DEMAND)
    recorder.finish(chunks=20)
    assert recorder.arrived[0] == ExpertKey(0, 3)
    assert set(recorder.arrived) == {ExpertKey(0, 1), ExpertKey(0, 2), ExpertKey(0, 3)}


def test_promotion_and_cancellation_of_what_is_queued():
    recorder = Recorder()
    with recorder.lock:
        recorder.transfers.start(ExpertKey(0, 0), 0, Priority.DEMAND)
        queued = [recorder.transfers.start(ExpertKey(1, n), 1 + n, Priority.PREFETCH) for n in range(3)]
        recorder.transfers.promote(queued[2], Priority.DEMAND)
        assert recorder.transfers.cancel(queued[0])
        assert not recorder.transfers.cancel(queued[0])
    recorder.finish(chunks=20)
    assert recorder.arrived == [ExpertKey(0, 0), ExpertKey(1, 2), ExpertKey(1, 1)]
    assert (recorder.link.slots[1] == 0).all()
    assert np.unique(recorder.link.slots[3]).size == 1
