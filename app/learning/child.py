"""The process that learns from the person's chats: one thread, lowest priority, ends with the program that started it.

It is given a job as JSON and writes what happens to stdout, an object a line: {"done", "total"} now and then, and in
the end {"learnt"} or, where it cannot learn, {"refused"}. When its stdin ends it leaves a checkpoint and ends too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

LEAVING_SECONDS = 20.0  # what it may take from the end of stdin to its own
TOLD_SECONDS = 0.5
RATE = 1.5e-3  # half of what a first training takes
MEASURE_EVERY = 50


def job(traces: Path, until: int, out: Path, minutes: float) -> str:
    """What `main` takes: learn from `traces` up to the mark `until` for `minutes` of CPU time, and write to `out`."""
    return json.dumps({"traces": str(traces), "until": until, "out": str(out), "minutes": minutes})


def main(text: str) -> None:
    """Does the job and ends."""
    step_aside()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program, which then ends this
    left = _end_of_stdin()
    from engine.errors import Cancelled, EngineError

    try:
        found = learn(left.is_set, _Teller(), **json.loads(text))
        _say({"learnt": asdict(found) | {"kept": found.better}})
    except EngineError as error:
        _say({"refused": {"cause": error.cause, "remedy": error.remedy}})
    except Cancelled:
        sys.exit(1)


def step_aside() -> None:
    """Whatever else runs on this machine goes first."""
    process = psutil.Process()
    if os.name == "nt":
        process.nice(psutil.IDLE_PRIORITY_CLASS)
        return
    process.nice(19)
    if hasattr(process, "ionice"):
        process.ionice(psutil.IOPRIO_CLASS_IDLE)


def learn(
    must_stop: Callable[[], bool],
    on_progress: Callable[[str, int, int], None],
    traces: str,
    until: int,
    out: str,
    minutes: float,
) -> Any:
    """A LearntOn. Raises EngineError, Cancelled."""
    from engine.routing.traces.trace_set import read_traces

    recorded = read_traces([Path(traces)], until)
    import torch

    from engine.errors import InvalidSetting
    from engine.routing.predictor_files import find_predictor
    from engine.routing.training.learning_on import learn_on
    from engine.routing.training.predictor_training import PredictorTraining
    from engine.routing.training.train import TrainingSettings

    torch.set_num_threads(1)
    settings = TrainingSettings(steps=20_000, minutes=minutes, rate=RATE, measure_every=MEASURE_EVERY)
    start, _ = find_predictor(recorded.model)
    training = PredictorTraining(settings=settings, start=start, clock=time.process_time)
    checkpoint = Path(f"{out}.checkpoint")
    try:
        return learn_on(recorded, Path(out), training, on_progress, must_stop)
    except InvalidSetting:
        if not checkpoint.exists():
            raise
        checkpoint.unlink()  # the oldest chats have gone since it was left
        return learn_on(recorded, Path(out), training, on_progress, must_stop)


class _Teller:
    """Progress, not more often than somebody would look."""

    def __init__(self) -> None:
        self._told_at = -TOLD_SECONDS

    def __call__(self, stage: str, done: int, total: int) -> None:
        if total and time.monotonic() - self._told_at > TOLD_SECONDS:
            self._told_at = time.monotonic()
            _say({"done": done, "total": total})


def _end_of_stdin() -> threading.Event:
    """Set when whoever started this closes it, or is gone; a computation that does not notice is then cut off."""
    ended = threading.Event()

    def watch() -> None:
        while os.read(0, 64):  # not through sys.stdin: its lock would be held when the interpreter ends
            pass
        ended.set()
        time.sleep(LEAVING_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="stdin", daemon=True).start()
    return ended


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
