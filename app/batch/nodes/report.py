"""What the workers of a job did, each and together."""

from __future__ import annotations

from collections import Counter
from typing import Any


class WorkerTotals:
    """Adds up what comes with each answer. A worker that is killed loses what it had not told."""

    def __init__(self) -> None:
        self._spent: dict[str, Counter[str]] = {}
        self._nodes: dict[str, str] = {}

    def add(self, row: dict[str, Any]) -> None:
        """`row`: as `EngineWorker` gives it, of one answer."""
        spent = self._spent.setdefault(row["worker"], Counter())
        spent.update(row["spent"])
        spent["lines"] += 1
        self._nodes[row["worker"]] = row["node"]

    def workers(self) -> list[dict[str, Any]]:
        """In the order in which they first answered."""
        return [
            {"worker": number, "node": self._nodes[name], "lines": spent["lines"], **_rates(spent)}
            for number, (name, spent) in enumerate(self._spent.items(), 1)
        ]

    def together(self) -> dict[str, Any]:
        """`tokens_per_second` is the sum of the workers' own."""
        total: Counter[str] = Counter()
        for spent in self._spent.values():
            total.update(spent)
        speed = sum(worker["tokens_per_second"] for worker in self.workers())
        return {**_rates(total), "tokens_per_second": speed}


def _rates(spent: Counter[str]) -> dict[str, Any]:
    return {
        "tokens": spent["tokens"],
        "tokens_per_second": spent["decode_steps"] / spent["decode_seconds"] if spent["decode_seconds"] else 0.0,
        "hit_rate": spent["hits"] / spent["activations"] if spent["activations"] else 0.0,
        "experts_per_token": spent["activations"] / max(spent["decode_steps"], 1),
        "bytes_moved": spent["bytes_moved"],
        "bytes_per_token": spent["bytes_moved"] / max(spent["tokens"], 1),
        "stall_seconds": spent["stall_seconds"],
    }
