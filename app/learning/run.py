"""A run of learning as it lies on disk: its folder, and which processes are at it, for whoever wants to end it."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ValidationError

from engine.paths import data_dir

CANDIDATE = "candidate.safetensors"  # train_predictor keeps its checkpoint beside it
ENDING_SECONDS = 10.0


class Worker(BaseModel, frozen=True):
    """A process; its number alone may be another's by now."""

    pid: int
    born: float

    @classmethod
    def of(cls, pid: int) -> Worker:
        """Raises psutil.NoSuchProcess."""
        return cls(pid=pid, born=psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """None when it has ended."""
        try:
            found = psutil.Process(self.pid)
            return found if abs(found.create_time() - self.born) < 1 and found.is_running() else None
        except psutil.Error:
            return None


class Run(BaseModel, frozen=True):
    """`mark`: it learns from what was recorded up to there (`TraceStore.mark`)."""

    model: str
    mark: int
    owner: Worker
    child: Worker | None = None
    id: str = ""

    @property
    def folder(self) -> Path:
        return _folder(self.model)

    @property
    def candidate(self) -> Path:
        return self.folder / CANDIDATE

    def is_registered(self) -> bool:
        """False when somebody has forgotten it since."""
        found = _read(self.folder)
        return found is not None and found.id == self.id

    def register_child(self, pid: int) -> None:
        """Says who learns, unless somebody has forgotten the run since."""
        if self.is_registered():
            _write(self.model_copy(update={"child": Worker.of(pid)}))

    def remove(self) -> None:
        """Its folder with all that is in it, unless somebody has forgotten it since."""
        if self.is_registered():
            shutil.rmtree(self.folder, ignore_errors=True)


def runs_dir() -> Path:
    """Folder of all runs. Not created here."""
    return data_dir() / "learning"


def begin_run(model: str, mark: int) -> Run | None:
    """Registers a run, which goes on with what one of a program that has ended left; None while another program is at
    it. Raises OSError."""
    left = _read(_folder(model))
    if left is not None and left.owner.pid != os.getpid() and left.owner.process() is not None:
        return None
    if left is not None:
        _end_child(left)
        if any(left.folder.glob("*.checkpoint")):
            mark = left.mark
    run = Run(model=model, mark=mark, owner=Worker.of(os.getpid()), id=uuid.uuid4().hex)
    run.folder.mkdir(parents=True, exist_ok=True)
    _write(run)
    return run


def forget_runs(model: str = "*") -> None:
    """Ends the model's run, or every one, of any program, and deletes what it has written. Raises OSError."""
    for folder in runs_dir().glob(model):
        run = _read(folder)
        if run is not None:
            _end_child(run)
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def _folder(model: str) -> Path:
    return runs_dir() / model


def _read(folder: Path) -> Run | None:
    try:
        return Run.model_validate_json((folder / "run.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _write(run: Run) -> None:
    partial = run.folder / f"run.{os.getpid()}.partial"
    partial.write_text(run.model_dump_json(), encoding="utf-8")
    os.replace(partial, run.folder / "run.json")


def _end_child(run: Run) -> None:
    child = None if run.child is None else run.child.process()
    if child is None:
        return
    family = [child, *(child.children(recursive=True) if os.name == "nt" else [])]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, ENDING_SECONDS)
