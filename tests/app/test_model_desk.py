"""Another model for the page: what it would need, its download in the background, the change to it and back."""

from __future__ import annotations

import threading
import time
import tomllib
from dataclasses import fields

import pytest

from app.settings import settings_path
from app.ui.layout import ModelParts
from app.ui.model_picker import ModelPicker
from app.ui.tabs import Tabs
from engine.errors import CheckpointCorrupt, DownloadBusy, EngineBusy, HubUnreachable, ModelNotFound
from tests.app.fake_engine import FakeEngine
from tests.tiny_models import tiny_checkpoint

NAME = "org/moe"


class Loader:
    """Loads scripted engines by name; those in `broken` fail."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []
        self.broken: set[str] = set()
        self.asked: list[dict] = []

    def __call__(self, model, on_progress, **options):
        self.asked.append({"model": model, **options})
        if model in self.broken:
            raise CheckpointCorrupt(f"{model} is truncated.", "Download it again.")
        engine = FakeEngine(words=[f"word{i} " for i in range(400)], token_seconds=0.02)
        engine.model_name = model
        self.engines.append(engine)
        return engine


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def program(make_program, loader, hub):
    hub.add(NAME, tiny_checkpoint("mixtral"))
    program = make_program(loader)
    program.host.wait(30)
    yield program
    program.answers.close()
    program.desk.close()


def ended(desk):
    """The download's end."""
    desk._thread.join(60)
    return desk.download


def test_an_offer_counts_what_the_loaded_model_would_give_back(program, monkeypatch):
    monkeypatch.setattr("engine.card_emulation.available_ram_bytes", lambda: 1_500_000_000)
    engine = program.host.engine
    offer = program.desk.offer(NAME)
    assert offer.plan.slots == offer.plan.experts_total
    assert (offer.name, offer.is_here) == (NAME, False)
    engine._state[:] = 2  # now every expert is in memory
    held = engine.plan.near_bytes_dense + engine._state.size * engine.plan.slot_bytes
    reasons = " ".join(program.desk.offer(NAME).plan.reasons)
    assert f"{(1_500_000_000 + held) / 1e9:.1f} GB are free" in reasons


def test_a_model_comes_in_the_background_and_is_loaded_in_the_old_ones_place(program, loader):
    desk, old = program.desk, program.host.engine
    before = desk.stamp
    desk.start_download(desk.offer(NAME))
    assert ended(desk).complete
    assert desk.download.done == desk.download.total > 0
    assert desk.stamp != before
    assert desk.offer(NAME).is_here
    desk.load(NAME)
    engine = program.host.wait(30)
    assert old.closed
    assert (engine.model_name, program.model_name) == (NAME, NAME)
    assert loader.asked[-1]["budget"] == "auto"
    program.host._thread.join(30)
    assert tomllib.loads(settings_path().read_text())["model"] == NAME


def test_a_stopped_download_goes_on_and_only_one_runs(program, hub):
    desk, offer = program.desk, program.desk.offer(NAME)
    hub.hold = threading.Event()
    desk.start_download(offer)
    assert hub.held.wait(30)
    with pytest.raises(DownloadBusy, match="org/moe"):
        desk.start_download(offer)
    desk.cancel_download()
    hub.hold.set()
    stopped = ended(desk)
    assert stopped.cancelled
    assert not stopped.complete
    hub.hold = None
    desk.start_download(desk.offer(NAME))
    assert ended(desk).complete


def test_a_failed_download_keeps_its_error(program, hub):
    offer = program.desk.offer(NAME)
    hub.damaged = True
    program.desk.start_download(offer)
    assert "arrived damaged" in ended(program.desk).error.cause


def test_an_unforeseen_error_becomes_words(program, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of luck")

    offer = program.desk.offer(NAME)
    monkeypatch.setattr("engine.checkpoint.hub.download.fetch_all", fail)
    program.desk.start_download(offer)
    assert "out of luck" in ended(program.desk).error.cause


def test_what_is_not_there_is_told(program, monkeypatch):
    with pytest.raises(ModelNotFound):
        program.desk.offer("org/absent")
    program.desk.offer(NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    offer = program.desk.offer(NAME)  # from the config seen before
    assert not offer.is_here
    with pytest.raises(HubUnreachable):
        program.desk.start_download(offer)


def test_a_model_that_fails_to_load_leaves_a_way_back(program, loader):
    desk = program.desk
    assert desk.previous is None
    settings = settings_path().read_text() if settings_path().exists() else ""
    loader.broken.add("org/broken")
    first = program.model_name
    desk.load("org/broken")
    with pytest.raises(CheckpointCorrupt):
        program.host.wait(30)
    program.host._thread.join(30)
    assert desk.previous == first
    assert (settings_path().read_text() if settings_path().exists() else "") == settings
    desk.load_previous()
    assert program.host.wait(30).model_name == first
    assert desk.previous is None


def test_the_model_is_not_taken_from_under_an_answer(program):
    chat = program.store.create_chat()
    program.store.add_user_message(chat, "Count")
    program.answers.start(chat, program.preferences.sampling)
    with pytest.raises(EngineBusy, match="being written"):
        program.desk.load(NAME)
    assert program.host.engine is not None
    program.answers.close()


def test_recording_lets_go_of_the_old_model_and_takes_up_the_new(program, loader):
    program.routing.switch(True)
    old = program.host.engine
    store = old.store
    program.desk.load("org/other")
    new = program.host.wait(30)
    assert new.store is not None
    assert new.store is not store
    program.routing.switch(False)


def test_two_changes_at_once_are_one(program, loader):
    go_on = threading.Event()
    load, program.host._load = program.host._load, lambda **options: (go_on.wait(30), load(**options))[1]
    program.desk.load("org/one")
    with pytest.raises(EngineBusy, match="being loaded"):
        program.desk.load("org/two")
    go_on.set()
    assert program.host.wait(30).model_name == "org/one"
    end = time.monotonic() + 30
    while program.host._thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)


def test_no_room_is_told_and_the_offer_stays(program, monkeypatch):
    monkeypatch.setattr("engine.checkpoint.hub.download.SPARE_BYTES", 10**15)
    parts = ModelParts(**{field.name: field.name for field in fields(ModelParts)})
    shown = ModelPicker(program, parts, Tabs()).download(NAME)
    assert "HF_HOME" in shown[parts.offer]
    assert "MixtralForCausalLM" in shown[parts.offer]
    assert shown[parts.download]["visible"]
