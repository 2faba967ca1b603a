"""What `launch.py test` runs, and what becomes of it."""

import subprocess
from pathlib import Path

import pytest

from launcher import suite

EVERYTHING = {"ruff check", "ruff format", "mypy", "pytest"}


@pytest.fixture
def ran(monkeypatch):
    """Commands that were run, by their first words; those in `failing` fail."""
    commands: dict[str, list[str]] = {}
    failing: set[str] = set()

    def run(command, **options):
        words = " ".join(command[2:4]) if command[2] == "ruff" else command[2]
        commands[words] = command[3:]
        said = f"{words} says so\n" if "stdout" in options else None
        return subprocess.CompletedProcess(command, int(words in failing), said)

    monkeypatch.setattr(suite.subprocess, "run", run)
    monkeypatch.setattr(suite.os, "cpu_count", lambda: 2)
    return commands, failing


def test_all_checks_and_all_tests_are_run(ran, capsys):
    commands, _ = ran
    assert suite.run_suite(Path.cwd(), []) == 0
    assert set(commands) == EVERYTHING
    assert "All passed." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "name"), [("ruff check", "lint"), ("ruff format", "format"), ("mypy", "types"), ("pytest", "tests")]
)
def test_one_that_fails_is_named_and_the_others_are_run_all_the_same(ran, capsys, broken, name):
    commands, failing = ran
    failing.add(broken)
    assert suite.run_suite(Path.cwd(), []) == 1
    assert set(commands) == EVERYTHING
    said = capsys.readouterr().out
    assert f"Failed: {name}." in said
    assert "mypy says so" in said


def test_arguments_go_to_pytest_alone(ran):
    commands, _ = ran
    assert suite.run_suite(Path.cwd(), ["tests/test_launch.py", "-k", "lock"]) == 0
    assert commands == {"pytest": ["tests/test_launch.py", "-k", "lock"]}


def test_processes_are_as_many_as_processors_up_to_a_limit():
    assert suite.parallel_pytest(1) == ("pytest",)
    assert suite.parallel_pytest(2)[:3] == ("pytest", "-n", "2")
    assert suite.parallel_pytest(64)[:3] == ("pytest", "-n", str(suite.MOST_WORKERS))
