"""The check of killed jobs sees what it is for; the real model's run is `python -m scripts.kill_batch`."""

from __future__ import annotations

import sys

import pytest

from scripts.kill_batch import finish, kill_moments, run_killed, write_source

LINES = 60


@pytest.fixture
def job(tmp_path):
    """The command of a job on an engine that counts, its output, and what it is to be."""
    source = write_source(tmp_path, LINES, tokens=4)

    def command(target):
        return [sys.executable, "-m", "tests.app.batch_engine", str(source), str(target), "0.03"]

    finish(command(tmp_path / "undisturbed.jsonl"))
    target = tmp_path / "killed.jsonl"
    return command(target), target, (tmp_path / "undisturbed.jsonl").read_bytes()


def test_a_job_that_keeps_its_promise_is_found_identical(job):
    found = run_killed(*job, [5, 20], seed=3)
    assert found.identical and len(found.kept) == 2 and found.torn in {0, 1, 2}
    assert 5 <= found.kept[0] <= found.kept[1] <= LINES and found.kept[1] >= 20


def test_one_kill_in_five_comes_before_any_answer():
    moments = kill_moments(200, 10, seed=0)
    assert len(moments) == 10 and moments == sorted(moments) and moments.count(0) == 2 and max(moments) < 180


def test_one_other_byte_is_seen(job):
    command, target, expected = job
    assert not run_killed(command, target, expected.replace(b"line-59", b"line-60"), [1], seed=0).identical


def test_a_job_that_ends_too_early_is_told(job):
    with pytest.raises(SystemExit, match="before line 999"):
        run_killed(*job, [999], seed=0)


def test_a_job_that_fails_is_told():
    with pytest.raises(SystemExit, match="ended with 3"):
        finish([sys.executable, "-c", "raise SystemExit(3)"])
