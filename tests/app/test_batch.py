"""A batch's output: a line for each line, in order, the same however the job was interrupted."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batch.job import BatchSettings, run_batch
from app.batch.lines import BadLine, BatchLine, answer_line, read_line
from app.batch.output import BatchOutput
from engine.errors import InvalidSetting
from tests.app.batch_engine import CountingEngine

ROOT = Path(__file__).parents[2]


def asked(custom_id: str, content: str, **body) -> str:
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps(request | {"body": {"messages": [{"role": "user", "content": content}], **body}})


def write_source(folder: Path, lines: int) -> Path:
    source = folder / "in.jsonl"
    generator = random.Random(1)
    source.write_text(
        "".join(asked(f"line-{n}", "x" * generator.randint(1, 40), max_tokens=9) + "\n" for n in range(lines))
    )
    return source


def run(source: Path, target: Path, engine: CountingEngine | None = None) -> tuple[dict, list[dict]]:
    with BatchOutput(target) as output:
        report = run_batch(engine or CountingEngine(), source, output, BatchSettings(max_tokens=8), lambda *_: None)
    return report, [json.loads(line) for line in target.read_text().splitlines()]


def test_answers_come_in_the_order_of_the_file_though_they_end_in_another(tmp_path):
    engine = CountingEngine(batch_size=4)
    report, answers = run(write_source(tmp_path, 30), tmp_path / "out.jsonl", engine)
    assert [answer["custom_id"] for answer in answers] == [f"line-{n}" for n in range(30)]
    assert engine.most_at_once == 4
    assert report["lines"] == report["lines_written"] == 30 and not report["lines_failed"] and not report["lines_kept"]
    body = answers[0]["response"]["body"]
    assert body["usage"]["completion_tokens"] == len(body["choices"][0]["message"]["content"].split())
    assert report["tokens"] == sum(answer["response"]["body"]["usage"]["completion_tokens"] for answer in answers)


def test_lines_that_cannot_be_answered_get_an_error_and_the_others_their_answer(tmp_path):
    source = tmp_path / "in.jsonl"
    bad = [
        "no json at all",
        '{"custom_id": "empty", "url": "/v1/chat/completions", "body": {"messages": []}}',
        asked("long", "y" * 200),
        asked("streamed", "hello", stream=True),
        '{"custom_id": "embeddings", "url": "/v1/embeddings", "body": {}}',
        "[1, 2]",
    ]
    source.write_text("\n".join([asked("first", "abc"), *bad, "", asked("last", "abcd")]) + "\n")
    report, answers = run(source, tmp_path / "out.jsonl")
    assert [answer["custom_id"] for answer in answers] == [
        "first", None, "empty", "long", "streamed", "embeddings", None, "last",
    ]  # fmt: skip
    assert [answer["error"] is None for answer in answers] == [True, *[False] * 6, True]
    assert "too long" in answers[3]["error"]["message"]
    assert report["lines"] == 8 and report["lines_failed"] == 6


@settings(max_examples=40)
@given(st.integers(0, 3000), st.integers(1, 4))
def test_a_torn_file_is_gone_on_with(tmp_path_factory, torn_at, batch_size):
    folder = tmp_path_factory.mktemp("batch")
    source, target = write_source(folder, 12), folder / "out.jsonl"
    run(source, target)
    whole = target.read_bytes()
    target.write_bytes(whole[:torn_at])
    report, _ = run(source, target, CountingEngine(batch_size))
    assert target.read_bytes() == whole
    assert report["lines_kept"] == whole[:torn_at].count(b"\n")
    again, _ = run(source, target)
    assert again["lines_kept"] == 12 and again["tokens"] == 0


def test_a_job_killed_at_ten_random_moments_gives_what_an_undisturbed_one_gives(tmp_path):
    source, target = write_source(tmp_path, 200), tmp_path / "out.jsonl"
    run(source, tmp_path / "undisturbed.jsonl")
    command = [sys.executable, "-m", "tests.app.batch_engine", str(source), str(target), "0.002"]
    generator, kills = random.Random(), 0
    while kills < 10:
        job = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        before = target.stat().st_size if target.exists() else 0
        while job.poll() is None and (not target.exists() or target.stat().st_size == before):
            time.sleep(0.001)  # it has begun
        time.sleep(generator.random() * 0.02)
        if job.poll() is None:
            job.kill()
            kills += 1
        job.wait()
        if job.returncode == 0:
            target.unlink()  # done before ten kills: from the beginning again
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert target.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()


def test_a_job_that_is_stopped_keeps_what_is_whole(tmp_path):
    source, target = write_source(tmp_path, 30), tmp_path / "out.jsonl"
    report, answers = run(source, target, CountingEngine(cancel_after=40))
    assert 0 < len(answers) == report["lines_written"] < 30
    _, answers = run(source, target)
    assert len(answers) == 30


def test_answers_to_other_lines_are_not_added_to(tmp_path):
    source, target = write_source(tmp_path, 5), tmp_path / "out.jsonl"
    run(source, target)
    other = tmp_path / "other.jsonl"
    other.write_text(asked("something else", "abc") + "\n")
    before = target.read_bytes()
    with pytest.raises(InvalidSetting, match="other lines"):
        run(other, target)
    assert target.read_bytes() == before
    target.write_text("this is my diary\n")
    with pytest.raises(InvalidSetting, match="not the answer"):
        run(source, target)
    assert target.read_text() == "this is my diary\n"


def test_two_jobs_do_not_write_one_file(tmp_path):
    target = tmp_path / "out.jsonl"
    with BatchOutput(target), pytest.raises(InvalidSetting, match="Another job"), BatchOutput(target):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match="cannot be written"), BatchOutput(tmp_path / "file" / "out.jsonl"):
        pass


def test_what_a_line_says_counts_and_else_the_jobs_settings():
    plain = read_line(4, asked("a", "hi"), max_tokens=50, seed=100)
    assert isinstance(plain, BatchLine)
    assert (plain.max_tokens, plain.seed, plain.temperature, plain.stop) == (50, 104, 1.0, ())
    own = read_line(4, asked("a", "hi", max_tokens=7, seed=3, temperature=0, stop=["\n", ""], top_p=0.5), 50, 100)
    assert isinstance(own, BatchLine)
    assert (own.max_tokens, own.seed, own.temperature, own.top_p, own.stop) == (7, 3, 0.0, 0.5, ("\n",))
    assert isinstance(read_line(0, asked("a", "hi", n=2), 50, 0), BadLine)


def test_text_ends_at_the_first_stop_mark():
    line = read_line(0, asked("a", "hi", stop=["END", "##"]), 50, 0)
    assert isinstance(line, BatchLine)
    choice = answer_line(line, "m", "one ## two END", "length", 3, 9)["response"]["body"]["choices"][0]
    assert choice["message"]["content"] == "one " and choice["finish_reason"] == "stop"
