"""Resident memory against the plan, by the system's own accounting."""

from __future__ import annotations

import json
import subprocess
import sys

from engine.hardware.memory_plan import MIB


def within_plan(used_bytes: int, planned_bytes: int) -> bool:
    """The project's one tolerance."""
    return used_bytes <= planned_bytes + max(planned_bytes // 10, 64 * MIB)


def test_the_process_stays_within_its_plan_and_shrinks_when_told(builtin_model):
    command = [sys.executable, "-m", "tests.engine.measure_memory", str(builtin_model)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert within_plan(report["load_peak"], report["plan"]), report
    assert within_plan(report["answer_peak"], report["plan"]), report
    assert within_plan(report["held_at_60"], report["plan_at_60"]), report
    missing = report["should_fall"] - report["fell"]
    assert missing <= max(report["should_fall"] // 10, 64 * MIB), report
