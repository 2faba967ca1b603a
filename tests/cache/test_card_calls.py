"""The real calls, on a recording stand-in for torch.cuda: which, with what, and in which order."""

from __future__ import annotations

import torch

from engine.cache.host_memory import HostMemory
from engine.cache.link import Priority
from engine.cache.links.card_calls import TorchCard
from engine.cache.links.cuda import open_card_link
from engine.checkpoint.expert_key import ExpertKey
from engine.engine import Engine
from engine.placement import Placement
from tests.cache.recording_torch_cuda import RecordingTorchCuda
from tests.cache.test_cuda_link import transfer
from tests.cache.test_host_tier import bytes_of, index_of
from tests.engine.oracle import assert_same_greedy
from tests.engine.test_card import NEW_TOKENS, reference
from tests.tiny_models import tiny_checkpoint

DEVICE = torch.device("cpu")  # where the tensors of this stand-in for a card are


def test_a_transfer_is_enqueued_recorded_and_waited_for_in_this_order():
    cuda, index, key = RecordingTorchCuda(), index_of(), ExpertKey(1, 2)
    link = open_card_link(index, TorchCard(DEVICE, cuda), 4)
    link.grow([0])
    cuda.notes.clear()
    transfer(link, key, 0, Priority.PREFETCH)
    link.released([0])
    stream, events = cuda.notes[0][1], cuda.notes[0][2]
    whats = [note[0] for note in cuda.notes]
    chunk = ["wait", "enter", "leave", "record", "synchronize"]
    assert whats == [*chunk, *chunk, "record"]
    assert {note[1] for note in cuda.notes if note[0] in ("wait", "enter", "record")} - {stream} == {1}  # the default's
    arrived = cuda.notes[3][2]
    assert cuda.notes[4][2] == arrived != events
    assert cuda.notes[-1][1] == 1, "the last use is recorded where it is computed"
    params = index.params(1)
    data = link.weights(key, 0).tensors
    assert b"".join(data[param.name].numpy().tobytes() for param in params) == bytes_of("mixtral", key)
    link.close()
    assert not cuda.locked


def test_streams_and_events_are_what_they_should_be():
    cuda = RecordingTorchCuda()
    card = TorchCard(DEVICE, cuda)
    urgent, other = card.stream(urgent=True), card.stream(urgent=False)
    assert urgent.priority < other.priority == 0
    assert urgent.device == other.device == DEVICE
    assert card.event().blocking, "a reader that spins takes a core from the computation"
    assert card.compute_stream() is cuda.current_stream()
    assert card.free_bytes() == (8 << 30) + (1 << 30)
    assert card.reserved_bytes() == 3 << 30


def test_a_refused_lock_is_forgotten_by_the_runtime_and_not_tried_again():
    cuda = RecordingTorchCuda(lockable_bytes=2 * 4096)
    card, launched = TorchCard(DEVICE, cuda), []
    forget = card._forget_error
    card._forget_error = lambda: launched.append(forget())  # type: ignore[method-assign]
    memory = HostMemory(4096, card, piece_bytes=2 * 4096)
    for _ in range(3):
        memory.grow(2)
    assert [note[0] for note in cuda.notes] == ["refused"] and len(launched) == 1
    assert memory.locked_bytes == 2 * 4096 and memory.pageable_bytes == 4 * 4096
    assert set(cuda.devices_entered) == {DEVICE}
    memory.close()
    assert not cuda.locked


def test_an_engine_over_these_calls_answers_as_stock_does(monkeypatch):
    cuda = RecordingTorchCuda()
    placement = Placement(DEVICE, "A stand-in.", TorchCard(DEVICE, cuda))
    monkeypatch.setattr("engine.engine.place", lambda device, link: placement)
    stock, [prompt, _], [answer, _] = reference("mixtral")
    with Engine.load(tiny_checkpoint("mixtral"), budget="30%") as engine:
        assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)
        engine.resize("10%")
        assert_same_greedy(engine.generate_ids(prompt, NEW_TOKENS), answer, prompt, stock)
    waits = [note for note in cuda.notes if note[0] == "synchronize"]
    assert waits and all(note[-1].startswith("expertflow-reader") for note in waits), "the computing thread waited"
    for thread in {note[-1] for note in waits}:  # of each reader: every copy behind a wait, before its own record
        own = [note for note in cuda.notes if note[-1] == thread]
        for number, note in enumerate(own):
            if note[0] == "enter":
                assert own[number - 1][0] == "wait" and own[number - 1][1] == note[1]
                after = own[number + 2 : number + 4]
                assert [step[0] for step in after] == ["record", "synchronize"]
                assert after[0][1] == note[1] and after[0][2] == after[1][2]
    assert not cuda.locked
