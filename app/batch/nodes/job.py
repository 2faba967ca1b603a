"""The same job over several engines, with Ray Data: `map_batches` with a class, which makes a pool of actors.

Ray Data gives a pool's actors whichever block comes next; it has no way to say which row is for which actor (data sets
of one worker's rows each would need the whole file sorted beforehand, and a worker that falls behind could not be
helped). So the rows it streams are only tickets, numbers; an actor that is given one asks the feed, an actor on the
machine that has the file, for the lines that suit what its engine's cache holds. All the rest is Ray Data's: the pool,
placing it, streaming, backpressure, and repeating a ticket when its actor dies, for which the feed then gives the same
lines again. Answers come back here and are written in order by this process alone.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.batch.job import BatchSettings, Progress, check_same_job, count_lines
from app.batch.nodes.feed import feed_sizes
from app.batch.nodes.feed_actor import FeedActor, FeedPlan
from app.batch.nodes.report import WorkerTotals
from app.batch.nodes.session import Nodes
from app.batch.nodes.worker import RESULT, EngineWorker
from app.batch.output import BatchOutput
from engine.errors import ClusterFailed

GO_ON = "What is written is whole; the same command goes on from there."


@dataclass(frozen=True)
class NodesJob:
    """`engine_options` with the batch size: what each worker loads its engine with, its budget too.

    `schedule`: arguments of its SchedulerSettings.
    """

    nodes: Nodes
    engine_options: dict[str, Any]
    spread: str
    settings: BatchSettings
    worker: type[EngineWorker] = EngineWorker
    schedule: tuple[Any, ...] = ()


def run_batch_on_nodes(job: NodesJob, source: Path, output: BatchOutput, on_progress: Progress) -> dict[str, Any]:
    """`run_batch` with the engines of a session of Ray that is open; Ctrl-C ends it with what is written.

    Raises InvalidSetting, ClusterFailed, and what stops a worker in the worker's own words, with its machine's name.
    """
    total, kept = count_lines(source), check_same_job(source, output)
    begun, totals, stopped = time.perf_counter(), WorkerTotals(), False
    on_progress("Answering", kept, total)
    if kept < total:
        plan = _plan(job, source, kept, total)
        feed = _start_feed(plan)
        try:
            for row in _rows(job, feed, math.ceil((total - kept) / plan.ticket_lines)):
                output.write(row["number"], row["answer"])
                feed.written.remote(output.written)
                totals.add(row)
                on_progress("Answering", output.written, total)
        except KeyboardInterrupt:
            stopped = True
        except ray.exceptions.RayError as error:
            raise ClusterFailed(f"Ray ended the job: {_first_line(error)}", GO_ON) from error
        if output.written < total and not stopped:
            raise ClusterFailed(f"Ray gave {total - output.written} lines no answer.", GO_ON)
    return {
        "file": str(output.path),
        "lines": total,
        "lines_kept": kept,
        "lines_written": output.written,
        "lines_failed": output.failed,
        "stopped": stopped,
        "seconds": time.perf_counter() - begun,
        **totals.together(),
        "spread": job.spread,
        "workers": totals.workers(),
    }


def _plan(job: NodesJob, source: Path, kept: int, total: int) -> FeedPlan:
    workers, options = job.nodes.workers, job.engine_options
    ticket_lines, window_lines = feed_sizes(total - kept, workers, options["batch_size"])
    return FeedPlan(source, kept, options["model"], job.spread, workers, ticket_lines, window_lines, job.settings)


def _start_feed(plan: FeedPlan) -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(FeedActor).options(num_cpus=0, scheduling_strategy=here, max_restarts=0).remote(plan)


def _rows(job: NodesJob, feed: Any, tickets: int) -> Iterator[dict[str, Any]]:
    """What the workers give, a row for each line. Raises what `run_batch_on_nodes` raises."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.target_max_block_size = 1  # byte: each answer is a block of its own and comes when it is there
    answers = (
        ray.data.range(tickets)
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            job.worker,
            fn_constructor_args=(feed, job.engine_options, job.settings, job.nodes.share, job.schedule),
            # One ticket at a time: a second one, taken first by an actor that was restarted, would wait for the lines
            # of the one that is to be repeated after it.
            compute=ray.data.ActorPoolStrategy(size=job.nodes.workers, max_tasks_in_flight_per_actor=1),
            batch_size=1,
            num_cpus=1,
            num_gpus=job.nodes.gpus_each,
        )
    )
    for row in answers.iter_rows():
        yield told(row[RESULT])


def told(result: str) -> dict[str, Any]:
    """A row as the worker made it. Raises ClusterFailed with what stopped it, and where."""
    row: dict[str, Any] = json.loads(result)
    if "problem" in row:
        cause, remedy = row["problem"]
        raise ClusterFailed(f"On {row['node']}: {cause}", remedy)
    return row


def _first_line(error: BaseException) -> str:
    """The innermost reason; Ray's own texts are pages long."""
    while getattr(error, "cause", None):
        error = error.cause  # type: ignore[attr-defined]
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
