"""Progress of long work on stderr: a bar on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""(stage, done, total); total 0 where it is unknown."""


@contextmanager
def progress_on_stderr() -> Iterator[Progress]:
    """Shows stages while open and leaves nothing behind on a terminal."""
    if not sys.stderr.isatty():
        yield _Lines().report
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("Starting", total=None, amount="")

        def report(stage: str, done: int, total: int) -> None:
            bars.update(task, description=stage, completed=done, total=total or None, amount=_amount(done, total))

        yield report


def _amount(done: int, total: int) -> str:
    """Stages that count millions count bytes."""
    return f"{done / 1e9:.2f} of {total / 1e9:.2f} GB" if total >= 1_000_000 else ""


class _Lines:
    """A log file gets each stage once, not each step."""

    def __init__(self) -> None:
        self._stage = ""

    def report(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            print(stage, file=sys.stderr, flush=True)
