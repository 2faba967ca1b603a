"""`batch` and `bench batch` with a token scheduler, as a person runs them."""

from __future__ import annotations

import json

from tests.app.test_batch import asked
from tests.app.test_cli import home, run, run_json  # noqa: F401 - home is a fixture
from tests.tiny_chat_model import tiny_chat_checkpoint


def test_answers_are_the_same_however_lines_are_grouped(home, tmp_path):  # noqa: F811
    source = tmp_path / "in.jsonl"
    source.write_text("".join(asked(str(n), f"Question {n}", max_tokens=5, temperature=0) + "\n" for n in range(5)))
    texts = []
    for scheduler in ("off", "cache-aware"):
        target = tmp_path / f"{scheduler}.jsonl"
        options = ("--scheduler", scheduler, "--group-size", 2, "--batch-size", 5)
        report = run_json("batch", source, target, "--model", tiny_chat_checkpoint(), "--budget", "50%", *options)
        assert report["lines_written"] == 5 and report["groupings"].keys() == {scheduler}
        assert 1 <= report["tokens_per_step"] <= 2 and report["experts_per_step"] > 0
        assert 0 < report["scheduling_share"] < 1
        lines = [json.loads(line) for line in target.read_text().splitlines()]
        texts.append([line["response"]["body"]["choices"][0]["message"]["content"] for line in lines])
    assert texts[0] == texts[1]


def test_an_unknown_scheduler_is_told_before_anything_is_read(home, tmp_path):  # noqa: F811
    result = run("batch", tmp_path / "none.jsonl", tmp_path / "out.jsonl", "--scheduler", "fastest", code=2)
    assert "fastest" in result.output
    result = run("bench", "batch", "--simulate", "--group-sizes", "four", code=2)
    assert "four" in result.output
