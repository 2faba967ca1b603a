"""The test suite as one command: lint, format, types, tests. Runs inside the environment."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.chromium import HOW_TO_GET_IT, find_chromium

QUICK_CHECKS = (
    ("lint", ("ruff", "check")),
    ("format", ("ruff", "format", "--check")),
)
SPINS_BESIDE_OTHERS = "100"  # threads that wait awake keep those of the other test processes off the processor
MOST_WORKERS = 4  # each may hold a model of gigabytes


def run_suite(root: Path, pytest_arguments: Sequence[str]) -> int:
    """Run it from `root`; with arguments, pytest alone with these. Returns the exit code."""
    if find_chromium() is None:
        print(f"No Chromium on this machine: the browser tests are left out. {HOW_TO_GET_IT}", flush=True)
    if pytest_arguments:
        failed = [] if _passes(root, "tests", ("pytest", *pytest_arguments)) else ["tests"]
    else:
        failed = _run_everything(root)
    print(f"Failed: {', '.join(failed)}." if failed else "All passed.", flush=True)
    return 1 if failed else 0


def parallel_pytest(processors: int) -> tuple[str, ...]:
    """Pytest in that many processes, up to a limit; the tests of a file stay together, since they share fixtures."""
    workers = min(processors, MOST_WORKERS)
    if workers == 1:
        return ("pytest",)
    return ("pytest", "-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder")


def _run_everything(root: Path) -> list[str]:
    """Names of what failed. The types are checked beside the tests, and shown after them."""
    failed = [name for name, command in QUICK_CHECKS if not _passes(root, name, command)]
    with ThreadPoolExecutor(1) as beside:
        types = beside.submit(_listen_to, root, ("mypy",))
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS_BESIDE_OTHERS)
        if not _passes(root, "tests", parallel_pytest(os.cpu_count() or 1)):
            failed.append("tests")
        _announce("types", ("mypy",))
        print(types.result().stdout, end="", flush=True)
        if types.result().returncode:
            failed.append("types")
    return failed


def _announce(name: str, command: Sequence[str]) -> None:
    print(f"== {name}: {' '.join(command)}", flush=True)


def _passes(root: Path, name: str, command: Sequence[str]) -> bool:
    _announce(name, command)
    return subprocess.run([sys.executable, "-m", *command], cwd=root, check=False).returncode == 0


def _listen_to(root: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


if __name__ == "__main__":
    try:
        sys.exit(run_suite(Path(__file__).resolve().parent.parent, sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
