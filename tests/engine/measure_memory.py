"""Run in a process of its own: what an engine really takes, as JSON. Arguments: checkpoint folder."""

from __future__ import annotations

import json
import os
import sys
import time

import psutil

from engine.engine import Engine
from engine.model import kernels  # noqa: F401 - part of "the same libraries"

MIB = 1 << 20


def peak_bytes() -> int:
    """Peak resident memory of this process since it began."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(path: str) -> None:
    process = psutil.Process()
    imported = process.memory_info().rss
    engine = Engine.load(path, budget="10%", link="disk:direct")
    report = {"plan": engine.plan.near_bytes_total, "load_peak": peak_bytes() - imported}
    prompt = [5 + (7 * n * n) % 20000 for n in range(1500)]
    engine.generate_ids(prompt, 24)
    report["answer_peak"] = peak_bytes() - imported
    large = engine.resize("60%")
    engine.generate_ids(prompt[-650:], 100)  # a prompt without a common start fills the slots
    full = process.memory_info().rss
    small = engine.resize("15%")
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline and full - process.memory_info().rss < 0.9 * _less(large, small):
        time.sleep(0.01)
    report |= {"fell": full - process.memory_info().rss, "should_fall": _less(large, small)}
    report["held_at_60"] = full - imported
    report["plan_at_60"] = large.near_bytes_total
    engine.close()
    print(json.dumps(report))


def _less(large, small) -> int:
    return large.near_bytes_experts - small.near_bytes_experts


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1])
