"""How fast something goes on its own, and beside everything else that goes on at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from engine.hardware.available_memory import available_ram_bytes

WORKING_SET_BYTES = 128 << 20  # more than processors' caches hold
_RAM_SHARE = 32  # ... but no more than this part of the free RAM: several probes hold theirs at a time

Step = Callable[[], int]
"""Does a small piece of work and returns the bytes it was about."""


@dataclass(frozen=True)
class Speed:
    """Bytes per second: by itself, and while the other things measured with it run too."""

    alone: float
    together: float


def working_set_bytes() -> int:
    """How much memory one probe goes through, so that it measures RAM and not a processor's cache."""
    return min(WORKING_SET_BYTES, available_ram_bytes() // _RAM_SHARE)


def measure(
    steps: Mapping[str, Step],
    seconds: float,
    on_step: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Speed]:
    """Each step again and again for `seconds`, one after the other, then all at once on a thread each.

    Every step is run once before, unmeasured. `on_step` is told what is measured next ("together" at the end). An
    exception of a step reaches the caller after all threads have ended.
    """
    alone = {}
    for name, step in steps.items():
        if on_step:
            on_step(name)
        step()
        alone[name] = _rate(step, seconds, clock)
    if on_step:
        on_step("together")
    together = _rates_at_once(steps, seconds, clock)
    return {name: Speed(alone[name], together[name]) for name in steps}


def _rates_at_once(steps: Mapping[str, Step], seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    begin_together = threading.Barrier(len(steps))

    def run(step: Step) -> float:
        begin_together.wait()
        return _rate(step, seconds, clock)

    with ThreadPoolExecutor(len(steps), "speed") as pool:
        runs = {name: pool.submit(run, step) for name, step in steps.items()}
    return {name: result.result() for name, result in runs.items()}


def _rate(step: Step, seconds: float, clock: Callable[[], float]) -> float:
    begin = clock()
    done_bytes, elapsed = 0, 0.0
    while not done_bytes or elapsed < seconds:
        done_bytes += step()
        elapsed = clock() - begin
    return done_bytes / max(elapsed, 1e-9)
