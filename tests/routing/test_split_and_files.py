"""Which conversation is for what, and files of traces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidSetting, TraceStoreUnavailable
from engine.routing.traces.trace_set import read_traces
from engine.routing.training.split import part_of, split_by_conversation
from tests.routing.synthetic import SHAPE, conversations, write_traces


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_no_conversation_is_in_two_parts_in_any_order(names, chance):
    one = conversations(1, 4)[0]
    always = [f"base {n}" for n in range(60)]  # so that no part is empty
    traces = [replace(one, conversation=name) for name in [*names, *names, *always]]
    chance.shuffle(traces)
    split = split_by_conversation(traces)
    parts = [{trace.conversation for trace in part} for part in (split.train, split.validation, split.test)]
    assert parts[0] | parts[1] | parts[2] == set(names) | set(always)
    assert sum(map(len, parts)) == len(parts[0] | parts[1] | parts[2])
    assert sum(map(len, (split.train, split.validation, split.test))) == len(traces)


def test_a_conversation_keeps_its_part():
    assert [part_of(f"chat {n}") for n in range(12)] == [part_of(f"chat {n}") for n in range(12)]
    parts = [part_of(f"chat {n}") for n in range(2000)]
    assert parts.count("train") / 2000 == pytest.approx(0.8, abs=0.03)
    assert parts.count("test") / 2000 == pytest.approx(0.1, abs=0.03)


def test_too_few_conversations_say_so():
    with pytest.raises(InvalidSetting, match="Record more conversations"):
        split_by_conversation(conversations(1))


def test_files_give_back_what_was_written(tmp_path):
    first, second = conversations(2, 10, distances=2), conversations(1, 7, seed=5)
    one = write_traces(tmp_path / "a.sqlite", [replace(first[0], hidden=None), first[1]])
    other = write_traces(tmp_path / "b.sqlite", second)
    found = read_traces([one, other])
    assert (found.model, found.shape, found.tokens) == ("model one", SHAPE, 27)
    assert [trace.conversation for trace in found.traces] == [t.conversation for t in first + second]
    assert found.traces[0].hidden is None and found.traces[2].ahead is None
    assert np.array_equal(found.traces[1].ahead, first[1].ahead.astype(np.float16))
    assert np.array_equal(found.traces[2].experts, second[0].experts)


def test_files_of_two_models_do_not_mix(tmp_path):
    files = [write_traces(tmp_path / f"{name}.sqlite", conversations(1, 5), model=name) for name in ("a", "b")]
    with pytest.raises(InvalidSetting, match="another model"):
        read_traces(files)


@pytest.mark.parametrize("content", [None, b"no database, but long enough to be taken for one" * 100])
def test_what_is_no_file_of_traces_is_named(tmp_path, content):
    file = tmp_path / "t.sqlite"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TraceStoreUnavailable, match="t.sqlite"):
        read_traces([file])
