"""Speeds from invented clocks; the probes' steps, small."""

from __future__ import annotations

import threading

import pytest
import torch

from engine.hardware import speed
from engine.hardware.copy_probe import CopyInRam, CopyToCard
from engine.hardware.expert_probe import ExpertShape, computed_by, expert_shape, expert_steps
from engine.hardware.speed import Speed, measure
from engine.model import kernels


class Clock:
    """Stands still until work moves it; each thread has its own time, as if on a processor of its own."""

    def __init__(self) -> None:
        self._local = threading.local()

    def __call__(self) -> float:
        return getattr(self._local, "seconds", 0.0)

    def work(self, seconds: float, nbytes: int) -> int:
        self._local.seconds = self() + seconds
        return nbytes


def test_alone_and_together():
    clock, running, most = Clock(), [0], [0]
    lock = threading.Lock()
    both = threading.Barrier(2, timeout=30)

    def slower_in_company(nbytes: int):
        def step() -> int:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            if threading.current_thread().name.startswith("speed"):
                both.wait()
            seconds = 0.01 * most[0]
            with lock:
                running[0] -= 1
            return clock.work(seconds, nbytes)

        return step

    told: list[str] = []
    steps = {"copy": slower_in_company(1000), "disk": slower_in_company(100)}
    found = measure(steps, 0.1, told.append, clock)
    assert found["copy"] == Speed(pytest.approx(100_000), pytest.approx(50_000))
    assert found["disk"] == Speed(pytest.approx(10_000), pytest.approx(5_000))
    assert told == ["copy", "disk", "together"]


@pytest.mark.parametrize("failing_call", [1, 2, 30])
def test_a_failing_step_is_an_error_and_leaves_no_thread(failing_call):
    clock, calls = Clock(), [0]

    def step() -> int:
        calls[0] += 1
        if calls[0] == failing_call:
            raise OSError("the disk is gone")
        return clock.work(0.01, 1)

    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        measure({"disk": step, "copy": lambda: clock.work(0.01, 1)}, 0.2, clock=clock)
    assert threading.active_count() == before


def test_a_copy_in_ram_copies(monkeypatch):
    monkeypatch.setattr(speed, "WORKING_SET_BYTES", 4096)
    copy = CopyInRam(1024)
    assert copy.step() == 1024
    assert copy._near.eq(1).all()


class Recorder:
    """torch as far as the card's probe uses it: notes what is asked for, in order."""

    uint8 = torch.uint8

    def __init__(self, refuses_pinned: bool = False) -> None:
        self.did: list[str] = []
        self.refuses_pinned = refuses_pinned
        self.cuda = self.accelerator = self

    def device(self, kind: str, index: int) -> str:
        return f"{kind}:{index}"

    def empty(self, shape, dtype, device=None, pin_memory=False):
        if pin_memory and self.refuses_pinned:
            raise RuntimeError("CUDA error: out of memory\nmore words")
        self.did.append(f"allocate on {device}" if device else f"allocate pinned={pin_memory}")
        return _Tensor(self)

    def Stream(self, device):
        return self

    def stream(self, stream):
        return self

    def __enter__(self):
        self.did.append("enter stream")

    def __exit__(self, *exception):
        self.did.append("leave stream")

    def synchronize(self):
        self.did.append("wait")

    def empty_cache(self):
        self.did.append("free card")

    def empty_host_cache(self):
        self.did.append("free pinned")


class _Tensor:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __getitem__(self, place):
        return self

    def fill_(self, value):
        return self

    def copy_(self, source, non_blocking):
        assert non_blocking
        self._recorder.did.append("copy")


def test_a_copy_to_a_card_waits_for_its_copies_and_gives_its_memory_back():
    driver = Recorder()
    with CopyToCard(1 << 20, 1, page_locked=True, driver=driver) as copy:
        assert copy.step() == 8 << 20
    assert driver.did == [
        "allocate pinned=True",
        "allocate on cuda:1",
        "enter stream",
        *["copy"] * 8,
        "leave stream",
        "wait",
        "wait",
        "free card",
        "free pinned",
    ]


def test_refused_page_locked_memory_is_an_error():
    with pytest.raises(RuntimeError, match="out of memory"):
        CopyToCard(1 << 20, 0, page_locked=True, driver=Recorder(refuses_pinned=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("compiled", [True, False])
def test_one_expert_is_computed(dtype, compiled, monkeypatch):
    monkeypatch.setattr(speed, "WORKING_SET_BYTES", 1 << 16)
    if not compiled:
        monkeypatch.setattr(kernels, "available", lambda: False)
    shape = ExpertShape(64, 32, dtype)
    by = computed_by(shape)
    assert by == "PyTorch" or kernels.available()
    step = expert_steps(shape)
    assert [step(), step()] == [3 * 64 * 32 * dtype.itemsize] * 2


def test_an_expert_larger_than_the_memory_to_go_through_is_computed_in_part(monkeypatch):
    monkeypatch.setattr(speed, "WORKING_SET_BYTES", 1 << 14)
    assert expert_steps(ExpertShape(64, 4096))() == 3 * 64 * 42 * 2


@pytest.mark.parametrize(("free", "room"), [(64 << 30, 128 << 20), (640 << 20, 20 << 20)])
def test_a_probe_takes_a_small_part_of_what_is_free(monkeypatch, free, room):
    monkeypatch.setattr(speed, "available_ram_bytes", lambda: free)
    assert speed.working_set_bytes() == room


def parameter(shape: tuple[int, ...], dtype: torch.dtype):
    return type("Parameter", (), {"shape": shape, "dtype": dtype})


def test_the_shape_behind_parameters():
    plain = [parameter((1536, 2048), torch.bfloat16), parameter((2048, 768), torch.bfloat16)]
    assert expert_shape(plain, 2048) == ExpertShape(2048, 768, torch.bfloat16)
    with_bias = [*plain, parameter((1536,), torch.float32)]
    assert expert_shape(with_bias, 2048) == ExpertShape(2048, 768, torch.bfloat16)
    quantised = [parameter((1536, 2048), torch.int8), parameter((2048, 768), torch.int8)]
    assert expert_shape(quantised, 2048).dtype == torch.bfloat16
