"""A worker whose engine counts; run as a program, it does a job on a cluster, which can be killed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app.batch.job import BatchSettings
from app.batch.nodes.worker import EngineWorker
from app.batch.output import BatchOutput
from tests.app.batch_engine import CountingEngine


class CountingWorker(EngineWorker):
    """The engine's options: "batch_size", "seconds" of a step."""

    def _load(self, options: dict[str, Any], schedule: tuple[Any, ...]) -> Any:
        engine = CountingEngine(options["batch_size"], options["seconds"])
        engine.traced_model = SimpleNamespace(fingerprint="counting")
        return engine


def run_counting(nodes: Any, source: Path, target: Path, seconds: float, on_progress=lambda *_: None) -> dict[str, Any]:
    from app.batch.nodes.job import NodesJob, run_batch_on_nodes

    options = {"model": "counting", "batch_size": 3, "seconds": seconds}
    job = NodesJob(nodes, options, "round-robin", BatchSettings(max_tokens=8), CountingWorker)
    with BatchOutput(target) as output:
        return run_batch_on_nodes(job, source, output, on_progress)


def main(address: str, source: str, target: str, seconds: str) -> None:
    from app.batch.nodes.session import ray_session

    with ray_session(address, 2, "cpu", "25%") as nodes:
        run_counting(nodes, Path(source), Path(target), float(seconds))


if __name__ == "__main__":
    from tests.app import counting_worker  # so that workers find the class by its module's name

    counting_worker.main(*sys.argv[1:])
