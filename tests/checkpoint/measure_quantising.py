"""Run in a process of its own: what quantising and running a quantised model take, as JSON. Arguments: checkpoint,
the folder for the copy, and the precision."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import bitsandbytes  # noqa: F401 - its libraries are not what is measured
import psutil

from engine.checkpoint.dense_model import open_checkpoint
from engine.checkpoint.quantised import ensure_quantised, plan_quantised
from engine.engine import Engine
from engine.lab.process_memory import peak_rss_bytes, reset_peak_rss
from engine.model import kernels
from engine.paths import HOME_VARIABLE

BUDGETS = ("20%", "60%", "100%")


def main(path: Path, home: str, precision: str) -> None:
    kernels.available()
    os.environ[HOME_VARIABLE] = home  # not before: compiled kernels are found in the usual place
    process = psutil.Process()
    index = plan_quantised(open_checkpoint(path), precision)
    imported = process.memory_info().rss
    reset_peak_rss()
    ensure_quantised(index)
    report = {"quantising_peak": peak_rss_bytes() - imported, "native_expert": index.native.expert_bytes, "runs": []}
    for budget in BUDGETS:
        before = process.memory_info().rss
        reset_peak_rss()
        with Engine.load(path, precision=precision, budget=budget) as engine:
            engine.generate_ids([5 + n % 900 for n in range(100)], 8)
            report["runs"].append({"peak": peak_rss_bytes() - before, "plan": engine.plan.near_bytes_total})
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
