"""A model from the hub to this machine: what it needs and nothing twice, only if there is room, checked as it comes."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.hub.access import cache_folder
from engine.checkpoint.hub.files import bytes_here, fetch
from engine.checkpoint.hub.remote_headers import read_weight_map
from engine.checkpoint.hub.repository import BRANCH, Repository, RepositoryFile, look_up
from engine.checkpoint.safetensors_header import INDEX_NAME, SINGLE_NAME
from engine.errors import Cancelled, DiskFull
from engine.hardware.memory_plan import format_bytes

Progress = Callable[[str, int, int], None]
CONNECTIONS = 4
REPORT_SECONDS = 0.2
SPARE_BYTES = 500_000_000  # a disk that is full to the last byte breaks other programs


@dataclass(frozen=True)
class DownloadPlan:
    """What belongs to the model, and how much of it is still to come."""

    repository: Repository
    files: tuple[RepositoryFile, ...]
    total_bytes: int
    here_bytes: int

    @property
    def missing_bytes(self) -> int:
        return self.total_bytes - self.here_bytes

    @property
    def is_complete(self) -> bool:
        return self.missing_bytes == 0

    def require_space(self) -> None:
        """Raises DiskFull, naming what would do."""
        free = shutil.disk_usage(_existing(cache_folder())).free
        if self.missing_bytes and free < self.missing_bytes + SPARE_BYTES:
            lacking = format_bytes(self.missing_bytes + SPARE_BYTES - free)
            raise DiskFull(
                f"{self.repository.name} needs {format_bytes(self.missing_bytes)} more at {cache_folder()}, where "
                f"{format_bytes(free)} are free.",
                f"Free {lacking}, or set HF_HOME to a folder on a larger disk.",
            )


def plan_download(repository: Repository) -> DownloadPlan:
    """Raises what makes the repository no model this program can run from its files, and what `hub_errors` raises."""
    repository.require_model()
    shards = [repository.files[name] for name in repository.shard_names(read_weight_map(repository))]
    index = [repository.files[INDEX_NAME]] if SINGLE_NAME not in repository.files else []
    files = (*repository.companions(), *index, *shards)
    here = sum(bytes_here(repository, file) for file in files)
    return DownloadPlan(repository, files, sum(file.nbytes for file in files), here)


def download(name: str, on_progress: Progress | None = None, is_cancelled: Callable[[], bool] = lambda: False) -> Path:
    """The folder of the model "org/name", with everything of it that was not here fetched and checked.

    `on_progress(stage, done_bytes, total_bytes)` is called in this thread; what it raises (Ctrl-C too) ends the
    download, as `is_cancelled` does. What arrived is kept for the next time. Raises Cancelled, ModelNotFound,
    AccessDenied, HubUnreachable, UnsupportedModel, DiskFull, DownloadBusy, CheckpointCorrupt.
    """
    plan = plan_download(look_up(name))
    plan.require_space()
    fetch_all(plan, on_progress, is_cancelled)
    return plan.repository.snapshot


def fetch_all(
    plan: DownloadPlan, on_progress: Progress | None = None, is_cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Fetches what `plan` lacks over a few connections. Raises what `download` raises."""
    counter, stop = _Counter(plan.here_bytes), threading.Event()

    def one(file: RepositoryFile) -> None:
        fetch(plan.repository, file, counter.add, lambda: stop.is_set() or is_cancelled())

    stage = f"Downloading {plan.repository.name}"
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download") as pool:
        running = [pool.submit(one, file) for file in plan.files]
        try:
            while not all(future.done() for future in running):
                if on_progress is not None:
                    on_progress(stage, counter.nbytes, plan.total_bytes)
                if is_cancelled():
                    raise Cancelled(stage)
                wait(running, REPORT_SECONDS, FIRST_EXCEPTION)
                _raise_first(running)
            _raise_first(running)
        except BaseException:  # Ctrl-C too: the connections must end before anything else happens
            stop.set()
            for future in running:
                future.cancel()
            raise
    _note_branch(plan.repository)
    if on_progress is not None:
        on_progress(stage, plan.total_bytes, plan.total_bytes)


class _Counter:
    """Bytes that are here, added to by several threads."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes


def _raise_first(futures: list[Future[None]]) -> None:
    for future in futures:
        if future.done() and not future.cancelled() and (error := future.exception()):
            raise error


def _note_branch(repository: Repository) -> None:
    """Tells all of Hugging Face's tools which commit the branch is at; only now, when it is whole."""
    reference = repository.folder / "refs" / BRANCH
    reference.parent.mkdir(parents=True, exist_ok=True)
    fresh = reference.with_name(f"{BRANCH}.{os.getpid()}.tmp")
    fresh.write_text(repository.commit)
    os.replace(fresh, reference)


def _existing(folder: Path) -> Path:
    """The folder or the nearest one above it that exists."""
    return folder if folder.is_dir() else _existing(folder.parent)
