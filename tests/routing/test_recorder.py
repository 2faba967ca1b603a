"""What is recorded of real answers of tiny models: every token once, with the routing the model really took."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import Engine
from engine.errors import Cancelled, TransferFailed, UnsupportedModel
from engine.routing.traces.recorder import FLUSHED_ROWS, RoutingRecorder
from engine.routing.traces.trace import NOBODY, RoutingTrace, joined
from engine.routing.traces.trace_store import TraceStore
from tests.engine.test_exactness import prompt_of
from tests.tiny_models import tiny_checkpoint

FAST, SLOW = "mixtral", "granitemoe"  # by the decoding fast path, by transformers' own layers


@pytest.fixture(scope="module")
def engine():
    with Engine.load(tiny_checkpoint(FAST), budget="50%", context_length=128) as engine:
        yield engine


@pytest.fixture
def recorded(engine):
    """Begins an empty chat and records into memory."""
    engine._sequences[0].forget()
    engine.record_routing(True)
    yield engine
    engine.record_routing(False)


def stock_routing(family: str, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and weights [tokens, layers, top_k] that stock transformers chooses for `ids`, best first."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(family), dtype=torch.float32).eval()
    chosen, weights = [], []

    def note(module, args, out):
        logits = out[0]
        values, index = logits.softmax(-1).topk(2, dim=-1)
        chosen.append(index.numpy())
        weights.append((values / values.sum(-1, keepdim=True)).numpy())

    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(note)
    with torch.inference_mode():
        model(torch.tensor([ids]))
    return np.stack(chosen, 1), np.stack(weights, 1)


def test_prefill_and_decoding_are_what_stock_routes(recorded):
    prompt = prompt_of(20, 1)
    answer = recorded.generate_ids(prompt, 12)
    (trace,) = recorded.take_routing()
    read = [*prompt, *answer[:-1]]  # the last token of an answer is never read
    assert trace.token_ids.tolist() == read
    assert trace.decoded.tolist() == [False] * 20 + [True] * (len(answer) - 1)
    experts, weights = stock_routing(FAST, read)
    np.testing.assert_array_equal(trace.experts, experts)
    np.testing.assert_allclose(trace.weights, weights, atol=2e-3)
    assert (trace.token_ids.dtype, trace.experts.dtype, trace.weights.dtype) == (np.int32, np.int16, np.float16)
    assert recorded.take_routing() == []


@pytest.mark.parametrize("family", [FAST, SLOW, "deepseek_v3", "nemotron_h"])
def test_outputs_are_identical_with_recording_on(family, tmp_path):
    prompts = [prompt_of(30, 2), prompt_of(9, 3)]
    with Engine.load(tiny_checkpoint(family), budget="30%") as engine:
        expected = [(engine.logits(prompt), engine.generate_ids(prompt, 10)) for prompt in prompts]
        with TraceStore(tmp_path / "traces.sqlite", engine.traced_model) as store:
            engine.record_to(store)
            for prompt, (logits, answer) in zip(prompts, expected, strict=True):
                assert torch.equal(engine.logits(prompt), logits)
                assert engine.generate_ids(prompt, 10) == answer
            engine.record_to(None)
            traces = list(store.traces())
    read = [[*prompt, *answer[:-1]] for prompt, (_, answer) in zip(prompts, expected, strict=True)]
    assert traces[-1].token_ids.tolist() == read[-1]
    assert (traces[-1].experts[..., 0] != NOBODY).all()


def test_a_follow_up_continues_the_conversation_and_another_prompt_begins_one(recorded):
    prompt = prompt_of(20, 4)
    answer = recorded.generate_ids(prompt, 6)
    follow_up = [*prompt, *answer, 7, 8, 9]
    later = recorded.generate_ids(follow_up, 4)
    recorded.generate_ids(prompt_of(15, 5), 3)
    chat, other = recorded.take_routing()
    assert chat.token_ids.tolist() == [*follow_up, *later[:-1]]
    assert other.conversation != chat.conversation
    assert other.token_ids[:15].tolist() == prompt_of(15, 5)


def test_an_edit_late_in_a_chat_replaces_its_end(recorded):
    prompt = prompt_of(30, 6)
    recorded.generate_ids(prompt, 3)
    edited = [*prompt[:25], *prompt_of(8, 7)]
    answer = recorded.generate_ids(edited, 3)
    (trace,) = recorded.take_routing()
    assert trace.token_ids.tolist() == [*edited, *answer[:-1]]


def test_an_edit_early_in_a_chat_begins_a_conversation_with_the_kept_rows(recorded):
    prompt = prompt_of(30, 6)
    recorded.generate_ids(prompt, 3)
    edited = [*prompt[:8], *prompt_of(8, 8)]
    recorded.generate_ids(edited, 3)
    first, second = recorded.take_routing()
    assert first.token_ids[:30].tolist() == prompt
    assert second.token_ids[:16].tolist() == edited
    np.testing.assert_array_equal(second.experts[:8], first.experts[:8])


def test_a_conversation_may_be_ended_by_hand(recorded):
    prompt = prompt_of(30, 6)
    recorded.generate_ids(prompt, 3)
    recorded.new_recorded_conversation()
    recorded.generate_ids([*prompt[:28], 9, 9, 9], 3)
    first, second = recorded.take_routing()
    assert first.conversation != second.conversation
    assert second.token_ids[:31].tolist() == [*prompt[:28], 9, 9, 9]


def test_recording_that_begins_in_mid_chat_has_the_rest_of_it(engine):
    prompt = prompt_of(20, 9)
    answer = engine.generate_ids(prompt, 5)
    engine.record_routing(True)
    later = engine.generate_ids([*prompt, *answer, 7], 4)
    (trace,) = engine.take_routing()
    engine.record_routing(False)
    assert trace.token_ids.tolist() == [answer[-1], 7, *later[:-1]]
    assert engine.generate_ids(prompt, 5) == answer
    assert engine.take_routing() == []


def test_an_interrupted_pass_leaves_no_rows(recorded, monkeypatch):
    prompt, acquire = prompt_of(20, 10), recorded._cache.acquire

    def failing(layer, experts):
        if layer == 2:
            raise TransferFailed("unplugged", "plug it in")
        return acquire(layer, experts)

    def cancelled(layer, experts):
        raise Cancelled

    with monkeypatch.context() as patch:
        patch.setattr(recorded._cache, "acquire", failing)
        with pytest.raises(TransferFailed):
            recorded.generate_ids(prompt, 3)
        patch.setattr(recorded._cache, "acquire", cancelled)
        assert recorded.generate_ids(prompt, 3) == []
    assert recorded.take_routing() == []
    answer = recorded.generate_ids(prompt, 3)
    assert recorded.take_routing()[0].token_ids.tolist() == [*prompt, *answer[:-1]]


def test_recurrent_models_read_a_chat_again_as_the_same_conversation():
    with Engine.load(tiny_checkpoint("nemotron_h"), budget="50%") as engine:
        engine.record_routing(True)
        prompt = prompt_of(20, 11)
        answer = engine.generate_ids(prompt, 5)
        follow_up = [*prompt, *answer, 7, 8]
        later = engine.generate_ids(follow_up, 3)
        (trace,) = engine.take_routing()
        assert trace.token_ids.tolist() == [*follow_up, *later[:-1]]


@pytest.mark.parametrize("family", [FAST, "qwen2_moe"])
def test_ahead_and_hidden_are_the_models_own(family, tmp_path):
    """In prefill and in decoding; `hidden` needs all rows of the last layer, which are else left out."""
    prompt = prompt_of(12, 12)
    with Engine.load(tiny_checkpoint(family), budget="50%") as engine:
        expected = engine.generate_ids(prompt, 8)
        engine._sequences[0].forget()
        with TraceStore(tmp_path / "traces.sqlite", engine.traced_model) as store:
            engine.record_to(store, ahead=2, hidden=True)
            assert engine.generate_ids(prompt, 8) == expected
            engine.record_to(None)
            (trace,) = store.traces()
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(family), dtype=torch.float32).eval()
    residuals = []
    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: residuals.append(args[0][0]))
    with torch.inference_mode():
        hidden = model.model(torch.tensor([trace.token_ids.tolist()])).last_hidden_state[0]
        last = model.model.layers[-1]
        router = last.post_attention_layernorm(residuals[-2]) @ last.mlp.gate.weight.T
    np.testing.assert_allclose(trace.hidden, hidden.numpy(), rtol=5e-3, atol=5e-3)
    np.testing.assert_allclose(trace.ahead[:, -2, 0], router.softmax(-1).numpy(), atol=2e-3)
    assert trace.ahead.shape == (len(trace), 3, 2, 8)
    assert trace.ahead[:, 0].all() and not trace.ahead[:, -2, 1].any() and not trace.ahead[:, -1].any()


def test_hidden_states_come_from_transformers_layers_too(tmp_path):
    with Engine.load(tiny_checkpoint(SLOW), budget="50%") as engine:
        with TraceStore(tmp_path / "traces.sqlite", engine.traced_model) as store:
            engine.record_to(store, hidden=True)
            engine.generate_ids(prompt_of(12, 13), 6)
            engine.record_to(None)
            (trace,) = store.traces()
        with pytest.raises(UnsupportedModel, match="ahead"):
            engine.record_to(None) or engine.record_to(store, ahead=1)
        assert not engine._model.model.norm._forward_hooks
    assert trace.hidden.shape == (len(trace), 32) and trace.hidden.any(axis=1).all()


def test_an_answer_goes_on_when_the_disk_fails(engine, tmp_path):
    expected = engine.generate_ids(prompt_of(20, 14), 10)
    store = TraceStore(tmp_path / "traces.sqlite", engine.traced_model)
    engine.record_to(store)
    store.close()
    assert engine.generate_ids(prompt_of(20, 15), 5)
    engine.wait_recorded()
    assert "Recording of routing stopped" in engine.recording_problem
    assert engine.generate_ids(prompt_of(20, 14), 10) == expected
    engine.record_to(None)
    assert "stopped" in engine.recording_problem


class Pieces:
    """A sink that keeps what it is given as the store would."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.rows: dict[str, list[RoutingTrace]] = {}
        self.sizes: list[int] = []

    def put(self, first: int, rows: RoutingTrace) -> None:
        kept = self.rows.setdefault(rows.conversation, [])
        before = [joined(kept).rows(0, first)] if kept else []
        self.rows[rows.conversation] = [*before, rows]
        self.sizes.append(len(rows))

    def ids(self) -> list[list[int]]:
        return [joined(rows).token_ids.tolist() for rows in self.rows.values()]


def read(recorder: RoutingRecorder, position: int, ids: list[int]) -> None:
    recorder.begin_pass(position, ids, decoded=len(ids) == 1)
    experts = torch.tensor([[token % 3, 3] for token in ids])
    recorder.observed(0, None, experts, torch.tensor([[0.25, 0.75]] * len(ids)))
    recorder.end_pass()


@pytest.fixture
def to_pieces():
    recorder, sink = RoutingRecorder([4], 2), Pieces()
    recorder.start(sink)
    return recorder, sink


def test_long_conversations_reach_the_sink_piece_by_piece(to_pieces):
    recorder, sink = to_pieces
    for position in range(2 * FLUSHED_ROWS + 10):
        read(recorder, position, [position])
    assert sink.sizes == [FLUSHED_ROWS] * 2
    recorder.flush()
    recorder.flush()
    assert sink.sizes == [FLUSHED_ROWS] * 2 + [10]
    assert sink.ids() == [list(range(2 * FLUSHED_ROWS + 10))]


def test_a_cut_before_and_after_what_was_handed_over(to_pieces):
    recorder, sink = to_pieces
    read(recorder, 0, list(range(10)))
    recorder.flush()
    read(recorder, 10, list(range(10, 20)))
    recorder.kept(15, 15, 20)  # rows 10..15 were never handed over, and stay
    read(recorder, 15, [90, 91])
    recorder.kept(9, 9, 17)  # 9 of 17: goes on, into what was handed over
    read(recorder, 9, [80])
    recorder.kept(4, 4, 10)  # less than half: another conversation
    read(recorder, 4, [70])
    recorder.flush()
    assert sink.ids() == [[*range(9), 80], [0, 1, 2, 3, 70]]


@pytest.mark.parametrize("rows", [1, 3])
def test_the_heaviest_expert_comes_first_and_nobody_last(rows):
    recorder = RoutingRecorder([4, 2], 3)
    recorder.start()
    recorder.begin_pass(0, [5] * rows, decoded=True)
    nobody = torch.tensor([[1, 4, 2]] * rows), torch.tensor([[0.1, 0.6, 0.3]] * rows)  # there is no expert 4 of 4
    recorder.observed(0, None, *nobody)
    recorder.observed(1, None, torch.tensor([[0]] * rows), torch.tensor([[1.0]] * rows))
    recorder.end_pass()
    (trace,) = recorder.take()
    assert trace.experts.tolist() == [[[2, 1, NOBODY], [0, NOBODY, NOBODY]]] * rows
    np.testing.assert_allclose(trace.weights[-1], [[0.3, 0.1, 0], [1, 0, 0]], atol=1e-3)


def test_a_sink_with_a_problem_ends_recording(to_pieces):
    recorder, sink = to_pieces
    read(recorder, 0, [1, 2])
    sink.problem = "full"
    read(recorder, 2, [3])
    assert recorder.take() == []


def test_recording_leaves_no_thread_behind(tmp_path):
    threads = threading.active_count()
    with Engine.load(tiny_checkpoint(FAST), budget="50%") as engine:
        store = TraceStore(tmp_path / "traces.sqlite", engine.traced_model)
        for _ in range(5):
            engine.record_to(store)
        answer = engine.generate_ids(prompt_of(20, 16), 5)
    assert store.summary().tokens == 20 + len(answer) - 1  # closing the engine wrote the rest
    store.close()
    assert threading.active_count() == threads


def test_other_weights_are_another_model():
    def fingerprint(path) -> str:
        with Engine.load(path, budget="50%") as engine:
            return engine.traced_model.fingerprint

    same = fingerprint(tiny_checkpoint(FAST))
    assert same == fingerprint(tiny_checkpoint(FAST))
    assert same != fingerprint(tiny_checkpoint(FAST, torch.bfloat16))
