"""Recorded routing on disk: what comes back, what a kill leaves, what is refused, what is forgotten."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import TraceStoreUnavailable
from engine.routing.readout import tap_layers
from engine.routing.traces.trace import joined
from engine.routing.traces.trace_file import FORMAT
from engine.routing.traces.trace_pieces import decode, encode
from engine.routing.traces.trace_store import TraceStore, forget_file
from engine.routing.traces.trace_writer import TraceWriter
from tests.routing.traces import MODEL, assert_same_rows, made_up

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "traces.sqlite"


@pytest.fixture
def store(path):
    with TraceStore(path, MODEL) as store:
        yield store


@pytest.mark.parametrize("optional", [{}, {"ahead": (3, 2, 8), "hidden": (16,)}])
def test_pieces_come_back_joined_and_the_same_after_a_restart(path, optional):
    rows = [made_up(tokens, seed, f"c{seed // 2}", **optional) for seed, tokens in enumerate((7, 5, 1, 30))]
    with TraceStore(path, MODEL) as store:
        for first, piece in zip((0, 7, 0, 1), rows, strict=True):
            store.append(first, piece)
    with TraceStore(path) as store:
        traces = list(store.traces())
        assert store.model == MODEL
        summary = store.summary()
    assert (summary.conversations, summary.tokens) == (2, 43)
    assert path.stat().st_size >= summary.bytes > 0
    for trace, pieces in zip(traces, (rows[:2], rows[2:]), strict=True):
        assert_same_rows(trace, joined(pieces))


def test_more_experts_than_a_byte_counts(path):
    rows = made_up(20, experts=300)
    with TraceStore(path, replace(MODEL, shape=replace(MODEL.shape, experts=300))) as store:
        store.append(0, rows)
        assert_same_rows(next(store.traces()), rows)


def test_streams_of_layers_that_are_tapped_no_more_are_left_out(monkeypatch):
    rows = made_up(5, midway=(len(tap_layers(made_up(5).layers)), 16))
    assert decode("c", encode(rows, 8)).midway is not None
    before = encode(rows, 8)
    monkeypatch.setattr("engine.routing.traces.trace_pieces.tap_layers", lambda layers: (layers - 1,))
    found = decode("c", before)
    assert found.midway is None
    np.testing.assert_array_equal(found.experts, rows.experts)


def test_optional_arrays_come_and_go(store):
    store.append(0, made_up(4, hidden=(16,)))
    store.append(4, made_up(4, 1))
    (trace,) = store.traces()
    assert len(trace) == 8 and trace.hidden is None


@pytest.mark.parametrize("cut", [0, 3, 10, 14, 20])
def test_appending_in_the_middle_replaces_what_was_there(store, cut):
    old, new = made_up(20, 1), made_up(6, 2)
    store.append(0, old.rows(0, 10))
    store.append(10, old.rows(10, 20))
    store.append(cut, new)
    (trace,) = store.traces()
    assert_same_rows(trace, joined([old.rows(0, cut), new]) if cut else new)
    assert store.summary().tokens == cut + 6


def test_a_conversation_may_begin_late_but_has_no_gaps(store):
    store.append(50, made_up(5))
    with pytest.raises(ValueError, match="never recorded"):
        store.append(60, made_up(5))
    assert store.summary().tokens == 5


def test_rows_are_small_on_disk(store):
    store.append(0, made_up(5000))
    loose = 5000 * (4 + 1 + 3 * 2 * (2 + 2))
    assert store.summary().bytes < loose


KILLED = """
import sys
from pathlib import Path
from engine.routing.traces.trace_store import TraceStore
from tests.routing.traces import MODEL, made_up
with TraceStore(Path(sys.argv[1]), MODEL) as store:
    for number in range(100_000):
        store.append(40 * (number % 10), made_up(40, number, f"c{number // 10}", hidden=(64,)))
        print(number, flush=True)
"""


@pytest.mark.parametrize("moment", [0.0, 0.003, 0.011, 0.05])
def test_a_kill_in_mid_write_leaves_everything_written_before(path, moment):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    while int(process.stdout.readline()) < 12:
        """Until it is in the middle of the second conversation."""
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    last = [int(line) for line in process.communicate()[0].split()][-1:] or [12]
    with TraceStore(path) as store:
        traces = list(store.traces())
    written = sum(len(trace) for trace in traces) // 40
    assert last[0] + 1 <= written <= last[0] + 2  # what was said to be written, and at most the one after
    for number, trace in enumerate(traces):
        pieces = [made_up(40, 10 * number + i, f"c{number}", hidden=(64,)) for i in range(len(trace) // 40)]
        assert_same_rows(trace, joined(pieces))
    with TraceStore(path, MODEL) as store:  # and it goes on
        store.append(0, made_up(3, conversation="later"))


def change(path: Path, *statements: str) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        database.execute(statement)
    database.close()


def test_files_of_another_kind_are_refused_and_not_touched(path):
    path.parent.mkdir()
    for content in (b"no database at all, only text" * 50, b""):
        path.write_bytes(content)
        with pytest.raises(TraceStoreUnavailable) as refused:
            TraceStore(path)
        assert str(path) in refused.value.cause and refused.value.remedy
        assert path.read_bytes() == content
    path.unlink()
    change(path, "CREATE TABLE mine (precious TEXT)")
    content = path.read_bytes()
    for model in (None, MODEL):
        with pytest.raises(TraceStoreUnavailable, match="not a file of recorded routing"):
            TraceStore(path, model)
    with pytest.raises(TraceStoreUnavailable):
        forget_file(path)
    assert path.read_bytes() == content


def test_a_file_of_a_newer_format_is_refused_with_both_numbers(path):
    TraceStore(path, MODEL).close()
    change(path, f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(TraceStoreUnavailable, match=f"format {FORMAT + 1}, this one knows {FORMAT}"):
        TraceStore(path, MODEL)


def test_a_file_of_another_model_is_refused_and_a_new_name_is_not(path):
    TraceStore(path, MODEL).close()
    with TraceStore(path, replace(MODEL, name="renamed")) as store:
        assert store.model.name == "renamed"
    with pytest.raises(TraceStoreUnavailable, match="renamed with other weights than those of other"):
        TraceStore(path, replace(MODEL, name="other", fingerprint="beef"))


def test_damaged_arrays_are_told_in_words(path, store):
    store.append(0, made_up(200))
    store.close()
    change(path, "UPDATE pieces SET arrays = substr(arrays, 1, 300)")
    with TraceStore(path) as reader, pytest.raises(TraceStoreUnavailable, match="cannot be used"):
        list(reader.traces())


def test_a_missing_file_is_an_error_only_for_readers(path):
    with pytest.raises(TraceStoreUnavailable, match="no such file"):
        TraceStore(path)
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_told_in_words(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TraceStoreUnavailable, match="cannot be used"):
        TraceStore(tmp_path / "file" / "traces.sqlite", MODEL)


def test_forgetting_deletes_everything_and_shrinks_the_file(path, store):
    store.append(0, made_up(2000, hidden=(64,)))
    (blob,) = store._database.execute("SELECT arrays FROM pieces").fetchone()
    secrets = [blob[start : start + 32] for start in range(0, len(blob) - 32, 9973)]
    assert all(secret in bytes_in(path.parent) for secret in secrets[:3])
    before = store.summary().bytes
    freed = store.forget()
    assert freed > before // 2
    assert (store.summary().tokens, list(store.traces())) == (0, [])
    assert path.stat().st_size < before // 5
    assert not any(secret in bytes_in(path.parent) for secret in secrets)
    store.append(7, made_up(3, conversation="next"))
    assert store.summary().tokens == 3


def bytes_in(folder: Path) -> bytes:
    """Whatever the store has written, its log too."""
    return b"".join(file.read_bytes() for file in folder.iterdir())


def test_past_the_limit_the_oldest_conversations_go(path):
    with TraceStore(path, MODEL, limit_bytes=400_000) as store:
        for number in range(12):
            store.append(0, made_up(300, number, f"c{number}", hidden=(100,)))
        kept = [trace.conversation for trace in store.traces()]
        assert kept == [f"c{number}" for number in range(12 - len(kept), 12)]
        assert 2 <= len(kept) < 12
        assert store.summary().bytes <= 400_000
        store.append(300, made_up(3000, 99, "c11", hidden=(100,)))  # larger than the limit alone: it stays
        assert [trace.conversation for trace in store.traces()] == ["c11"]


def test_a_reader_sees_what_a_writer_has_written_so_far(path, store):
    store.append(0, made_up(5))
    with TraceStore(path) as reader:
        assert reader.summary().tokens == 5
        store.append(5, made_up(5))
        assert reader.summary().tokens == 10


def test_a_full_disk_stops_the_writer_in_a_sentence_and_leaves_what_was_there(path, store):
    store.append(0, made_up(50))
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages + 1}")  # SQLite's own way to a full disk
    writer = TraceWriter(store)
    writer.put(50, made_up(5000, 1))
    writer.wait()
    assert writer.problem.startswith("Recording of routing stopped:")
    assert "full" in writer.problem and str(path) in writer.problem
    writer.put(50, made_up(1, 2))
    writer.close()
    (trace,) = store.traces()
    assert_same_rows(trace, made_up(50))


def test_the_writer_writes_everything_before_it_ends(store):
    writer, rows = TraceWriter(store), made_up(40)
    for first in range(0, 40, 4):
        writer.put(first, rows.rows(first, first + 4))
    writer.close()
    assert writer.problem is None
    assert not writer._thread.is_alive()
    assert_same_rows(next(store.traces()), rows)
