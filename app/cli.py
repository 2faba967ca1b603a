"""The command line: `python launch.py [SUBCOMMAND]` ends here. Anything heavy is imported by the command using it."""

from __future__ import annotations

import sys

import typer

from app.commands.batch import batch
from app.commands.bench import bench
from app.commands.chat import chat
from app.commands.doctor import doctor
from app.commands.models import models
from app.commands.page import page
from app.commands.simulate import simulate
from app.commands.trace import trace
from app.commands.train_predictor import train_predictor
from app.terminal import INTERRUPTED

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`launch.py test` runs the test suite, in this same environment.",
)
app.callback(invoke_without_command=True)(page)
app.command()(chat)
app.command()(batch)
app.command()(doctor)
app.command()(simulate)
app.command()(train_predictor)
app.add_typer(models, name="models")
app.add_typer(bench, name="bench")
app.add_typer(trace, name="trace")


def main() -> None:
    """Runs the command and ends the process with its exit code."""
    try:
        app(prog_name="launch.py")
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
