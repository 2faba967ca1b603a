"""From the command line to the running program."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import SetupProblem
from launcher.environment import Environment, RequirementGroup
from launcher.groups import program_group, test_group
from launcher.progress import Display

SHORT_HELP = """\
usage: python3 launch.py [SUBCOMMAND] [OPTIONS]

The first start makes a Python environment beside this file and says what that takes. Then:
  (nothing)  chat in the browser          chat    chat in the terminal
  doctor     what was found, and the plan models  what is on the machine
  bench      measure                      test    run the test suite
Once the environment is there, `--help` lists the options, also after each subcommand.
"""


def start(root: str | Path, arguments: Sequence[str]) -> int:
    """Prepare the environment in `root`, then become the program; returns an exit code if it cannot."""
    root = Path(root)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started us with it ignored
    signal.signal(signal.SIGTERM, _end)
    environment = Environment(root / ".venv", Display(sys.stderr))
    testing = list(arguments[:1]) == ["test"]
    groups = [program_group(root), test_group(root)] if testing else [program_group(root)]
    if list(arguments) in (["--help"], ["-h"]) and not environment.is_ready(groups):
        print(SHORT_HELP, end="")
        return 0
    exit_code = prepare(environment, groups)
    if exit_code:
        return exit_code
    module = ["launcher.suite", *arguments[1:]] if testing else ["app.cli", *arguments]
    return hand_over([str(environment.python), "-P", "-m", *module], program_environment(root))


def prepare(environment: Environment, groups: Sequence[RequirementGroup]) -> int:
    """Make the environment ready; what goes wrong ends in one sentence and a non-zero exit code."""
    try:
        environment.ensure(groups)
    except SetupProblem as problem:
        environment.display.line(str(problem))
        return 1
    except OSError as error:
        environment.display.line(explain_os_error(error))
        return 1
    except KeyboardInterrupt:
        environment.display.line("Stopped before the environment was ready; the same command starts again.")
        return 130
    return 0


def explain_os_error(error: OSError) -> str:
    """One sentence with the way out."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full{where}: free some space and run the same command again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"The program's folder cannot be changed{where}: close what uses it, or copy the program into a"
            " folder of your own, and run it there."
        )
    return f"The environment could not be made: {error}; then run the same command again."


def program_environment(root: Path) -> dict[str, str]:
    """The surroundings of the program: importable from anywhere, and reporting to nobody."""
    surroundings = dict(os.environ)
    surroundings.pop("PYTHONHOME", None)
    # Packages are installed uncompiled: without this, every start would compile all that it imports.
    surroundings.pop("PYTHONDONTWRITEBYTECODE", None)
    surroundings.update(
        PYTHONPATH=str(root),
        GRADIO_ANALYTICS_ENABLED="False",
        HF_HUB_DISABLE_TELEMETRY="1",
        DO_NOT_TRACK="1",
    )
    return surroundings


def hand_over(command: Sequence[str], surroundings: dict[str, str]) -> int:
    """Become `command`; on Windows, where that is not possible, run it to its end."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execve(command[0], list(command), surroundings)
    child = subprocess.Popen(list(command), env=surroundings)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue  # the console has sent it to the child as well, which decides what it means


def _end(signal_number: int, frame: object) -> None:
    raise SystemExit(128 + signal_number)
