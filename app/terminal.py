"""What all commands share: results on stdout, everything else on stderr, errors in words, exit codes.

Exit codes: 0 done, 2 an error with cause and remedy, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from app.terminal_progress import Progress, progress_on_stderr

FAILED, INTERRUPTED = 2, 130

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def command(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Wraps a command: engine errors become their words and exit code 2, Ctrl-C one line and 130."""

    @functools.wraps(function)
    def guarded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            from engine.errors import EngineError  # only now: the way in must stay quick

            if not isinstance(error, EngineError):
                raise
            _fail(error, bool(kwargs.get("as_json")))

    return guarded


def present(
    work: Callable[[Progress], Result], show: Callable[[Result], None], as_json: bool, to_json: Any = None
) -> Result:
    """Runs `work(on_progress)`, then prints its result: as JSON (after `to_json`, if given) or through `show`."""
    with progress_on_stderr() as on_progress, _clean_stdout() if as_json else _as_it_is():
        result = work(on_progress)
    if as_json:
        print_json(to_json(result) if to_json else result)
    else:
        show(result)
    return result


def print_json(result: Any) -> None:
    """The one object on stdout."""
    print(json.dumps(result, ensure_ascii=False), flush=True)


def _fail(error: Any, as_json: bool) -> NoReturn:
    if as_json:
        kind = type(error).__name__
        print_json({"error": {"kind": kind, "cause": error.cause, "remedy": error.remedy}})
    else:
        print(f"{error.cause}\n{error.remedy}", file=sys.stderr)
    raise typer.Exit(FAILED)


@contextmanager
def _clean_stdout() -> Iterator[None]:
    """Sends what anything prints meanwhile, C libraries too, to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
