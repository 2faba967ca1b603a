"""`trace`, `trace show`, `trace forget` and recording in the terminal chat, as a person runs them."""

from __future__ import annotations

import json
import re
import signal

import pytest

from app.routing_records import record_path, recorded, recorded_files
from engine.routing.traces.trace_store import TraceStore
from engine.routing.traces.traced_model import TracedModel
from tests.app.test_cli import greedy, home, run, run_json, start  # noqa: F401 - home is a fixture
from tests.routing.synthetic import SHAPE, conversations, write_traces
from tests.tiny_chat_model import tiny_chat_checkpoint
from tests.tiny_models import tiny_checkpoint

MODEL = ("--model", tiny_chat_checkpoint(), "--budget", "50%")


@pytest.fixture
def prompts(tmp_path):
    """Two prompts that begin alike, as chats with a system prompt do."""
    file = tmp_path / "prompts.jsonl"
    chats = [[{"role": "user", "content": f"Tell me the story of {what}"}] for what in ("Ada", "Bob")]
    file.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    return file


@pytest.fixture
def out(tmp_path):
    return tmp_path / "traces.sqlite"


def traces_in(path):
    with TraceStore(path) as store:
        return list(store.traces())


def test_each_prompt_is_a_conversation_and_a_second_run_adds(prompts, out):
    record = ("trace", "--prompts", prompts, "--out", out, *MODEL, "--tokens", 5, "--temperature", 0)
    first = run_json(*record)
    assert (first["path"], first["conversations"], first["new_conversations"]) == (str(out), 2, 2)
    assert first["bytes"] > 0 and first["seconds"] > 0 and not first["stopped"]
    traces = traces_in(out)
    assert sum(map(len, traces)) == first["tokens"] == first["new_tokens"]
    for trace in traces:
        assert trace.decoded.sum() == 4 and not trace.decoded[:-4].any()
    assert (traces[0].token_ids[:20] == traces[1].token_ids[:20]).all()
    second = run_json(*record, "--take", 1)
    assert (second["conversations"], second["new_conversations"]) == (3, 1)
    shown = run(*record).stdout
    assert "5 conversations" in shown and "traces.sqlite" in re.sub(r"[\s│]", "", shown)


def test_no_tokens_only_reads_and_the_optional_arrays_are_kept(prompts, out):
    run_json("trace", "--prompts", prompts, "--out", out, *MODEL, "--tokens", 0, "--ahead", 2, "--hidden")
    for trace in traces_in(out):
        assert not trace.decoded.any()
        assert trace.ahead.shape == (len(trace), 3, 2, 8)
        assert trace.hidden.shape == (len(trace), 32)


def test_prompts_longer_than_the_context_are_left_out_and_counted(prompts, out):
    long = {"messages": [{"role": "user", "content": "x" * 600}]}
    prompts.write_text(json.dumps(long) + "\n" + prompts.read_text())
    report = run_json("trace", "--prompts", prompts, "--out", out, *MODEL, "--tokens", 2)
    assert (report["prompts_too_long"], report["conversations"]) == (1, 2)


def test_show_and_forget(prompts, out):
    run_json("trace", "--prompts", prompts, "--out", out, *MODEL, "--tokens", 0)
    (facts,) = run_json("trace", "show", out)["recorded"]
    assert (facts["conversations"], facts["model"]["top_k"]) == (2, 2)
    assert "3 x 8" in run("trace", "show", out).stdout
    run("trace", "forget", out, given="n\n", code=1)
    assert len(traces_in(out)) == 2
    assert run_json("trace", "forget", out, "--yes")["freed_bytes"] >= 0
    assert traces_in(out) == []
    assert run_json("trace", "show") == {"recorded": []}
    assert "--record-routing" in run("trace", "show").stdout


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("trace", *MODEL), "InvalidSetting", "no file to record into"),
        (("trace", "--prompts", "/no/such", "--out", "x.sqlite"), "InvalidSetting", "does not exist"),
        (("trace", "show", "/no/such"), "TraceStoreUnavailable", "no such file"),
        (("trace", "forget", "/no/such", "--yes"), "TraceStoreUnavailable", "no such file"),
    ],
)
def test_bad_input_is_told_in_words(arguments, kind, words):
    error = run_json(*arguments, code=2)["error"]
    assert error["kind"] == kind
    assert words in error["cause"]


@pytest.mark.parametrize("named", [True, False])
def test_forgetting_takes_what_was_learnt_from_chats(out, named, home):  # noqa: F811
    from app.learning.learnt import Learnt, predictor_file, write_learnt
    from app.learning.run import begin_run, runs_dir

    recording = TracedModel("demo", "model one", SHAPE)
    write_traces(record_path(recording), conversations(2, 24))
    write_traces(out, conversations(2, 24))
    for model in ("model one", "model two"):
        write_learnt(model, Learnt(mark=2))
        predictor_file(model).write_bytes(b"learnt")
        begin_run(model, 2)
    run("trace", "forget", out, "--yes")
    assert predictor_file("model one").exists()
    run("trace", "forget", *([record_path(recording)] if named else []), "--yes")
    left = {file.stem for file in predictor_file("").parent.iterdir()} | {path.name for path in runs_dir().iterdir()}
    assert left == ({"model two"} if named else set())
    assert [summary.tokens for summary in recorded()] == [0]


def test_what_cannot_be_recorded_into_or_asked_for_is_told_in_words(prompts, out):
    record = ("trace", "--prompts", prompts, "--out", out, *MODEL)
    out.write_text("my diary " * 100)
    assert "cannot be used" in run_json(*record, code=2)["error"]["cause"]
    assert out.read_text() == "my diary " * 100
    out.unlink()
    bare = ("trace", "--prompts", prompts, "--out", out, "--model", tiny_checkpoint("gpt_oss"), "--ahead", 1)
    assert "GptOssForCausalLM" in run_json(*bare, code=2)["error"]["cause"]


def test_ctrl_c_keeps_what_is_recorded(prompts, out):
    process = start("trace", "--prompts", prompts, "--out", out, *MODEL, "--tokens", 100_000, "--json")
    while "Recording" not in (line := process.stderr.readline()):
        assert line, "it ended by itself"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert json.loads(output)["stopped"]
    assert errors.splitlines()[-1] == "Stopped."
    assert sum(map(len, traces_in(out))) == json.loads(output)["tokens"]


def test_the_terminal_chat_records_only_if_asked(prompts):
    run_json("chat", *greedy("--prompts", prompts))
    assert recorded_files() == []
    plain = run_json("chat", *greedy(), given="Hello\nAnd then?\n")
    asked = run_json("chat", *greedy("--record-routing"), given="Hello\nAnd then?\n")
    assert [one["token_ids"] for one in asked["answers"]] == [one["token_ids"] for one in plain["answers"]]
    (summary,) = recorded()
    assert summary.conversations == 1
    assert run_json("trace", "show")["recorded"][0]["tokens"] == summary.tokens
    run("trace", "forget", "--yes")
    assert recorded()[0].tokens == 0
