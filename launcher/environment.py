"""The virtual environment: made once, re-used, brought up to date, made anew if it was left half-made."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from launcher import SetupProblem
from launcher.lock import exclusive
from launcher.pip import explain_failure, installer_environment, run_pip
from launcher.progress import Display, PipProgress, size_words
from launcher.stamp import Stamp, digest


class InstallPlan(NamedTuple):
    """How a group is installed here: argument lists for `pip install`, in order, and the room it takes."""

    words: str
    steps: tuple[tuple[str, ...], ...]
    download_bytes: int
    disk_bytes: int


class RequirementGroup(NamedTuple):
    """Packages installed together, again whenever their requirement files change.

    `plan(environment)` is asked once the environment has a working pip, before anything large is downloaded.
    `check(environment)` afterwards: what the person should know of the result, if anything.
    """

    name: str
    requirement_files: tuple[Path, ...]
    plan: Callable[["Environment"], InstallPlan]
    check: Callable[["Environment"], str | None] = lambda environment: None


class Environment:
    """A virtual environment in `folder`, with its lock and log beside it."""

    def __init__(
        self,
        folder: Path,
        display: Display,
        pip: Sequence[str] | None = None,
        make_venv: Sequence[str] = (sys.executable, "-m", "venv"),
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        find_module: Callable[[str], object] = importlib.util.find_spec,
    ) -> None:
        self.folder = folder
        self.display = display
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.pip = list(pip or [str(self.python), "-m", "pip"])
        self.lock_path = folder.with_name(folder.name + ".lock")
        self.log_path = folder.with_name(folder.name + ".log")
        self.temporary_dir = folder / "tmp"
        self.stamp = Stamp(folder)
        self._make_venv = make_venv
        self._held_locks: tuple[int, ...] = ()
        self._free_bytes = free_bytes
        self._find_module = find_module

    def is_ready(self, groups: Sequence[RequirementGroup]) -> bool:
        """True if everything these groups' requirement files ask for is installed."""
        if not self.python.exists():
            return False
        installed = self.stamp.installed(self.python)
        return all(installed.get(group.name) == digest(group.requirement_files) for group in groups)

    def ensure(self, groups: Sequence[RequirementGroup]) -> None:
        """Make the environment hold these groups.

        Says beforehand what that takes. Raises SetupProblem; whatever ends it, the next call starts from a
        known state. Two calls at a time, in any processes, take turns.
        """
        if self.is_ready(groups):
            return
        with exclusive(self.lock_path, self._say_waiting) as lock:
            self._held_locks = (lock,)
            if not self.is_ready(groups):
                self._install(groups)

    def run_pip(self, arguments: Sequence[str]) -> None:
        """`pip install` with these arguments, shown and logged. Raises SetupProblem.

        The environment counts as unfinished from pip's first change to its last; one that was stopped while
        it still downloaded stays as good as it was.
        """
        installed = self.stamp.installed(self.python)
        progress = PipProgress(self.display)
        self.stamp.begin()
        try:
            run_pip(
                [*self.pip, "install", *arguments],
                installer_environment(self.temporary_dir),
                self.log_path,
                progress,
                self._held_locks,
            )
        except BaseException:
            if not progress.unpacking:
                self.stamp.cancel()
            raise
        self.stamp.finish(self.python, installed)

    def _install(self, groups: Sequence[RequirementGroup]) -> None:
        self.log_path.write_text("", encoding="utf-8")
        self._make_usable()
        installed = self.stamp.installed(self.python)
        changed = [g for g in groups if installed.get(g.name) != digest(g.requirement_files)]
        plans = self._plan(changed, installed)
        for group, plan in zip(changed, plans, strict=True):
            group_digest = digest(group.requirement_files)
            for step in plan.steps:
                self.run_pip(step)
            installed[group.name] = group_digest
            self.stamp.finish(self.python, installed)
            if words := group.check(self):
                self.display.line(words)
        shutil.rmtree(self.temporary_dir, ignore_errors=True)

    def _plan(self, changed: Sequence[RequirementGroup], installed: dict[str, str]) -> list[InstallPlan]:
        shutil.rmtree(self.temporary_dir, ignore_errors=True)
        self.temporary_dir.mkdir()
        plans = [group.plan(self) for group in changed]
        new = [plan for group, plan in zip(changed, plans, strict=True) if group.name not in installed]
        if new:
            self._check_room(new)
        else:
            self.display.line("The requirements have changed; bringing the environment up to date.")
        return plans

    def _make_usable(self) -> None:
        """Leave a folder with a working Python."""
        if self.folder.exists() or self.folder.is_symlink():
            fault = self._fault()
            if fault is None:
                return
            self.display.line(f"{fault}; making it again.")
            self._remove()
        self._create()

    def _fault(self) -> str | None:
        if self.stamp.is_unfinished():
            return "The environment was left half-made"
        if not self._works() or self.stamp.made_with_another(self.python):
            return "The environment does not work with this Python any more"
        return "Packages are missing from the environment" if self.stamp.is_damaged() else None

    def _works(self) -> bool:
        if not self.python.exists():
            return False
        check = "import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
        return subprocess.run([self.python, "-c", check], capture_output=True, check=False).returncode == 0

    def _remove(self) -> None:
        # Moved aside first: half of an environment must not be found under the environment's name.
        discarded = self.folder.with_name(self.folder.name + ".discarded")
        shutil.rmtree(discarded, ignore_errors=True)
        if self.folder.is_symlink():
            self.folder.unlink()
        else:
            self.folder.rename(discarded)
            shutil.rmtree(discarded)

    def _create(self) -> None:
        self._check_modules()
        self.stamp.begin()
        self.display.line(f"Making a Python environment in {self.folder}")
        made = subprocess.run([*self._make_venv, self.folder], capture_output=True, text=True, check=False)
        if made.returncode:
            words = explain_failure(made.stdout + made.stderr, made.returncode)
            raise SetupProblem(f"The Python environment could not be made: {words}; then run it again.")
        self.stamp.finish(self.python, {})

    def _check_modules(self) -> None:
        missing = [name for name in ("venv", "ensurepip") if self._find_module(name) is None]
        if missing:
            raise SetupProblem(
                f"This Python lacks its `{missing[0]}` module: install it (Debian and Ubuntu:"
                " `sudo apt install python3-venv`; elsewhere use the full Python from python.org)"
                " and run the same command again."
            )

    def _check_room(self, plans: Sequence[InstallPlan]) -> None:
        download_bytes = sum(plan.download_bytes for plan in plans)
        # Downloads lie beside the unpacked packages for a while.
        needed_bytes = download_bytes + sum(plan.disk_bytes for plan in plans)
        free_bytes = self._free_bytes(self.folder)
        if free_bytes < needed_bytes:
            raise SetupProblem(
                f"Not enough room: the installation needs {size_words(needed_bytes)} in {self.folder.parent},"
                f" {size_words(free_bytes)} are free; free some space there and run the same command again."
            )
        self.display.line(
            f"Now installing {' and '.join(plan.words for plan in plans)}:"
            f" about {size_words(download_bytes)} to download, {size_words(needed_bytes)} of disk"
            f" ({size_words(free_bytes)} are free). Ctrl-C stops; the same command goes on."
        )

    def _say_waiting(self) -> None:
        self.display.line("Another launch is preparing the environment; waiting for it (Ctrl-C stops).")
