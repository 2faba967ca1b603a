"""Run the environment's pip: progress on the screen, everything in a log, failures as one sentence."""

import math
import os
import queue
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from launcher import SetupProblem
from launcher.progress import PipProgress

_STOP_SECONDS = 10

# In the order of certainty: pip ends a lost connection with "No matching distribution", too.
_CAUSES = [
    (r"No space left on device|Errno 28|not enough space on the disk", "the disk is full: free some space"),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError",
        "a secure connection to the package index could not be made: check the clock, or ask whoever runs"
        " your network for its certificate and set PIP_CERT",
    ),
    (
        r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|"
        r"Failed to establish a new connection|Temporary failure in name resolution|Network is unreachable|"
        r"getaddrinfo failed|Connection refused|Connection reset|Connection broken|Remote end closed|"
        r"Read timed out|IncompleteRead|incomplete-download",
        "the package index could not be reached: check the network connection",
    ),
    (r"Permission denied|Errno 13", "a file could not be written: check who owns the program's folder"),
    (r"THESE PACKAGES DO NOT MATCH THE HASHES", "a download arrived damaged"),
]
_NOT_OFFERED = re.compile(r"No matching distribution found for (\S+)")


def installer_environment(temporary_dir: Path) -> dict[str, str]:
    """The surroundings pip runs in: the user's own, without what would lead it out of our environment."""
    surroundings = dict(os.environ)
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"):
        surroundings.pop(name, None)
    # A small /tmp in memory does not hold torch's wheel.
    surroundings.update({name: str(temporary_dir) for name in ("TMPDIR", "TEMP", "TMP")})
    surroundings.update(PIP_USER="0", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    surroundings.update(PYTHONIOENCODING="utf-8", PYTHONUNBUFFERED="1")
    return surroundings


def explain_failure(output: str, exit_code: int) -> str:
    """What pip's output says went wrong, as half a sentence with the way out."""
    for pattern, words in _CAUSES:
        if re.search(pattern, output):
            return words
    if match := _NOT_OFFERED.search(output):
        return f"the package index offers no {match[1]} for this Python and system"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"pip ended with code {exit_code}" + (f" ({lines[-1][:200]})" if lines else "")


def run_pip(
    command: Sequence[str],
    surroundings: Mapping[str, str],
    log_path: Path,
    progress: PipProgress,
    keep_open: Sequence[int] = (),
) -> None:
    """Run `command` to its end. Raises SetupProblem if it fails; a Ctrl-C ends it, too.

    `keep_open` are descriptors that pip inherits: with the lock among them, the lock outlives a killed launch
    for as long as its pip still writes.
    """
    child = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(surroundings),
        encoding="utf-8",
        errors="replace",
        pass_fds=() if os.name == "nt" else tuple(keep_open),
    )
    output = _follow(child, log_path, progress)
    exit_code = child.wait()
    if exit_code:
        raise SetupProblem(
            f"The installation stopped: {explain_failure(output, exit_code)};"
            f" then run the same command again. (Log: {log_path})"
        )


def _follow(child: subprocess.Popen[str], log_path: Path, progress: PipProgress) -> str:
    lines: queue.Queue[str | None] = queue.Queue()
    output: list[str] = []
    threading.Thread(target=_forward, args=(child.stdout, lines), daemon=True).start()
    try:
        with open(log_path, "a", encoding="utf-8") as log:
            print("$", child.args, file=log)
            for line in _lines_as_they_come(lines, progress):
                progress.read(line)
                if not line.startswith("Progress "):
                    output.append(line)
                    log.write(line)
                    log.flush()
    except BaseException:
        _stop(child)
        # What pip said last decides whether it had begun to change packages.
        for line in _lines_as_they_come(lines, progress, patience_ticks=2):
            progress.read(line)
        raise
    finally:
        progress.display.clear()
    return "".join(output)


def _lines_as_they_come(
    lines: "queue.Queue[str | None]", progress: PipProgress, patience_ticks: float = math.inf
) -> Iterator[str]:
    while patience_ticks > 0:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            progress.tick()
            patience_ticks -= 1
            continue
        if line is None:
            return
        yield line


def _forward(stream: TextIO, lines: "queue.Queue[str | None]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _stop(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
