"""A session of Ray: one of its own on this machine for trying, or a cluster that is joined."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import ray

from engine.errors import ClusterFailed, InvalidSetting

LOCAL = "local"
LOCAL_WORKERS = 2
START_ATTEMPTS = 3  # on a busy machine Ray's own bound on the start of its processes, seconds, may be too short
OBJECT_STORE_BYTES = 100 * 2**20  # tickets and answers are small
READING_CPUS = 1  # beside the workers: what makes tickets


@dataclass(frozen=True)
class Nodes:
    """`share`: workers that share a machine's processors; `gpus_each`: cards that Ray sets aside for a worker."""

    workers: int
    share: int
    gpus_each: int


@contextmanager
def ray_session(address: str, workers: int | None, device: str, budget: str | int) -> Iterator[Nodes]:
    """Joins the cluster at `address` ("auto" finds it), or starts one here for "local"; leaves or ends it again.

    `workers`: None for one on each machine, two on a local one. Raises InvalidSetting, ClusterFailed.
    """
    if address.startswith("ray://"):
        raise InvalidSetting(
            "A job is not started from outside the cluster: its file is read on the machine that starts it.",
            "Run the command on one of the cluster's machines, with --ray auto.",
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        if address == LOCAL:
            workers = workers or LOCAL_WORKERS
            _start_here(workers)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds
        raise _cannot_join(address, error) from error
    try:
        yield _nodes(workers, device, budget)
    finally:
        ray.shutdown()


def _cannot_join(address: str, error: Exception) -> ClusterFailed:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if address == LOCAL:
        return ClusterFailed(f"Ray did not start on this machine: {said}", "Try again when less runs here.")
    return ClusterFailed(
        f"The cluster at {address!r} cannot be joined: {said}",
        "Start Ray on its machines (`ray start --head`, then `ray start --address=...` on the others), or try --ray "
        f"{LOCAL}.",
    )


def _start_here(workers: int, attempts: int = START_ATTEMPTS) -> None:
    """Leaves nothing running when it fails, which Ray itself does not promise."""
    before = set(psutil.Process().children(recursive=True))
    try:
        ray.init(
            address="local",
            num_cpus=workers + READING_CPUS,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config={"prestart_worker_first_driver": False},  # idle processes, at the busiest moment
        )
    except Exception:
        ray.shutdown()
        half_started = set(psutil.Process().children(recursive=True)) - before
        for process in half_started:
            process.kill()
        psutil.wait_procs(half_started)
        if attempts == 1:
            raise
        _start_here(workers, attempts - 1)


def _nodes(asked: int | None, device: str, budget: str | int) -> Nodes:
    """Raises InvalidSetting for what the cluster has no room for, where Ray would wait for ever."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    workers = asked or len(alive)
    on_one = -(-workers // max(len(alive), 1))
    slots = int(sum(node["Resources"]["CPU"] for node in alive))
    if slots < workers + READING_CPUS:
        raise InvalidSetting(
            f"{workers} workers need {workers + READING_CPUS} processors of the cluster; it offers {slots}.",
            f"Ask for at most {max(slots - READING_CPUS, 1)} with --workers, or start Ray with more (--num-cpus).",
        )
    if on_one > 1 and str(budget) == "auto":
        raise InvalidSetting(
            f"{on_one} workers would share a machine, and each would take all of its memory.",
            "Say what each may take, such as --budget 25% or --budget 4GiB.",
        )
    cards = [int(node["Resources"].get("GPU", 0)) for node in alive]
    wants_card = device.startswith("cuda") or (device == "auto" and bool(cards) and min(cards) >= on_one)
    if wants_card and sum(cards) < workers:
        raise InvalidSetting(f"{workers} workers need a card each; the cluster has {sum(cards)}.", "Use --device cpu.")
    return Nodes(workers, on_one, 1 if wants_card else 0)
