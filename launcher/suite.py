"""The test suite as one command: lint, format, types, tests. Runs inside the environment."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.chromium import HOW_TO_GET_IT, find_chromium

CHECKS = (
    ("lint", ("ruff", "check")),
    ("format", ("ruff", "format", "--check")),
    ("types", ("mypy",)),
)


def run_suite(root: Path, pytest_arguments: Sequence[str]) -> int:
    """Run it from `root`; with arguments, pytest alone with these. Returns the exit code."""
    if find_chromium() is None:
        print(f"No Chromium on this machine: the browser tests are left out. {HOW_TO_GET_IT}", flush=True)
    commands = [("tests", ("pytest", *pytest_arguments))]
    if not pytest_arguments:
        commands = [*CHECKS, *commands]
    failed = [name for name, command in commands if not _passes(root, name, command)]
    print(f"Failed: {', '.join(failed)}." if failed else "All passed.", flush=True)
    return 1 if failed else 0


def _passes(root: Path, name: str, command: Sequence[str]) -> bool:
    print(f"== {name}: {' '.join(command)}", flush=True)
    return subprocess.run([sys.executable, "-m", *command], cwd=root, check=False).returncode == 0


if __name__ == "__main__":
    try:
        sys.exit(run_suite(Path(__file__).resolve().parent.parent, sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
