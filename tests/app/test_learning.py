"""When learning begins, rests and ends, and what becomes of it: with a scripted process and a clock of the test."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from app.learning.learning import Learning
from app.learning.learnt import predictor_file, read_learnt, write_learnt
from app.learning.need import LearningLimits, conversations_missing
from app.learning.run import Worker, begin_run, forget_runs, runs_dir
from app.preferences import Preferences
from app.routing_records import RoutingRecords, forget_all, record_path, recorded
from app.settings import load_settings, save_changes
from app.ui.learning_view import learning_explanation, learning_words
from engine.errors import InvalidSetting
from engine.routing.predictor_files import own_dir
from engine.routing.traces.trace_store import TraceStore
from engine.routing.traces.traced_model import TracedModel
from engine.routing.training.split import part_of
from tests.app.fake_engine import FakeEngine
from tests.routing.synthetic import SHAPE, conversations

MODEL = TracedModel("demo", "model one", SHAPE)
LIMITS = LearningLimits(new_tokens=200, first_tokens=600, held_out_tokens=24, free_bytes=0)
AMOUNTS = {"tokens": 100, "conversations": 9, "judged_tokens": 20}
BETTER = AMOUNTS | {"recall_before": 0.7, "recall_after": 0.8, "kept": True}
PID = 4_000_000  # of no process


class ScriptedProcess:
    """Does what the test says."""

    def __init__(self, job, run):
        self.job, self.run, self.log = json.loads(job), run, []
        self.done = self.total = 0
        self.learnt = self.refused = None
        self.alive, self.suspended, self.spent = True, False, 0.0
        self.problem = "it ended with code -9"
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        self.child, self.pid = child, child.pid

    def cpu_seconds(self):
        return self.spent

    def suspend(self):
        self.suspended = True

    def resume(self):
        self.suspended = False

    def leave(self):
        self.log.append("left")
        self.kill()

    def kill(self):
        self.log.append("killed")
        self.alive = False
        self.child.kill()
        self.child.wait()

    def give(self, learnt):
        self.run.candidate.write_bytes(b"a predictor")
        self.learnt, self.alive = learnt, False


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path))
    monkeypatch.setattr("psutil.sensors_battery", lambda: None, raising=False)  # whatever this machine runs on
    return tmp_path


@pytest.fixture
def desk():
    """Makes a Learning over recorded chats; `desk.processes`, `desk.now` and `desk.busy` are the test's."""
    made = []

    def make(chats=40, tokens=24, limits=LIMITS, on=True, known=True):
        save_changes({"record_routing": on, "learn_from_chats": on})
        if known:
            own_dir().mkdir(parents=True, exist_ok=True)
            (own_dir() / "model one.safetensors").write_bytes(b"a predictor of before")
        settings = load_settings()
        preferences = Preferences(settings)
        found = SimpleNamespace(now=1000.0, busy=False, processes=[], engine=FakeEngine())
        found.engine.traced_model = MODEL
        found.records = RoutingRecords(settings, preferences)
        found.records.attach(found.engine)
        record(found, conversations(chats, tokens))

        def start(job, run):
            found.processes.append(ScriptedProcess(job, run))
            return found.processes[-1]

        found.learning = Learning(
            found.records, settings, preferences, lambda: found.busy, limits, start, lambda: found.now
        )
        found.words = lambda: learning_words(found.learning)
        made.append(found)
        return found

    yield make
    for found in made:
        found.learning.close()
        found.records.close()


def record(desk, chats):
    with TraceStore(record_path(MODEL), MODEL) as store:
        for chat in chats:
            store.append(0, chat)


def pass_seconds(desk, seconds):
    desk.now += seconds
    desk.learning.tick()


def begun(desk):
    """Lets it begin; returns the process."""
    desk.learning.tick()
    pass_seconds(desk, LIMITS.idle_seconds)
    return desk.processes[-1]


def test_nothing_is_learnt_until_asked_for(desk):
    found = desk(on=False)
    for _ in range(3):
        pass_seconds(found, 3600)
    assert not found.processes and not found.learning.on and not runs_dir().exists()
    assert found.words() == '<p class="quiet" role="status">Learning is off.</p>'
    assert found.engine.store is None


def test_learning_needs_recording_and_ends_with_it(desk):
    found = desk(on=False)
    with pytest.raises(InvalidSetting, match="needs recorded routing"):
        found.learning.switch(True)
    assert not load_settings().learn_from_chats
    found.learning.switch_recording(True)
    assert not found.engine.recorded_hidden
    found.learning.switch(True)
    assert found.learning.on and load_settings().learn_from_chats and found.engine.recorded_hidden
    process = begun(found)
    found.learning.switch_recording(False)
    assert process.log[0] == "left" and not found.learning.on
    found.learning.switch_recording(True)
    assert not found.learning.on and not load_settings().learn_from_chats


def test_it_begins_after_a_minute_without_an_answer(desk):
    found = desk()
    found.busy = True
    pass_seconds(found, 3600)
    found.busy = False
    pass_seconds(found, 59)
    assert not found.processes and "begins when nothing was asked for 60 seconds" in found.words()
    pass_seconds(found, 21)
    (process,) = found.processes
    assert process.job["until"] == 40 and process.job["minutes"] == LIMITS.training_minutes
    assert "Learning, 0 %" in found.words()
    process.done, process.total = 3, 10
    pass_seconds(found, 1)
    assert "Learning, 30 %" in found.words() and len(found.processes) == 1


def test_it_rests_while_an_answer_is_written_and_a_minute_longer(desk):
    found = desk()
    process = begun(found)
    process.done, process.total = 4, 8
    found.busy = True
    pass_seconds(found, 0.2)
    assert process.suspended and "rests at 50 %" in found.words()
    found.busy = False
    pass_seconds(found, 59)
    assert process.suspended
    pass_seconds(found, 1)
    assert not process.suspended and "Learning, 50 %" in found.words()


def test_a_long_rest_gives_its_memory_back(desk):
    found = desk()
    process = begun(found)
    (process.run.folder / "candidate.safetensors.checkpoint").write_bytes(b"so far")
    found.busy = True
    for _ in range(4):
        pass_seconds(found, 100)
    assert process.log[0] == "left" and "begins when nothing was asked" in found.words()
    found.busy = False
    assert begun(found) is not process and found.processes[1].job == process.job


@pytest.mark.parametrize(
    ("chats", "known", "waits_for"),
    [
        (8, True, "8 more recorded tokens"),
        (20, False, "120 more recorded tokens"),
        (0, True, "200 more recorded tokens"),
    ],
)
def test_it_waits_for_enough_tokens(desk, chats, known, waits_for):
    found = desk(chats=chats, known=known)
    pass_seconds(found, 100)
    assert not found.processes and f"waits for {waits_for}" in found.words()


def test_it_waits_for_chats_to_judge_by():
    chats = [f"chat {n}" for n in range(200)]
    training = [chat for chat in chats if part_of(chat) == "train"][:5]
    assert conversations_missing(dict.fromkeys(training, 100), 400) == 40
    assert conversations_missing({}, 400) == 10
    assert conversations_missing(dict.fromkeys(chats, 100), 400) == 0


def test_the_page_says_how_many_conversations_are_missing(desk):
    found = desk(chats=0)
    record(found, [chat for chat in conversations(60, 24) if part_of(chat.conversation) == "train"][:20])
    pass_seconds(found, 100)
    assert not found.processes and "some 10 more conversations" in found.words()


def test_it_waits_for_free_memory(desk):
    found = desk(limits=LearningLimits(new_tokens=1, held_out_tokens=1, free_bytes=1 << 60))
    pass_seconds(found, 100)
    assert not found.processes and "more free memory" in found.words()


def test_it_waits_while_the_machine_runs_on_its_battery(desk, monkeypatch):
    battery = SimpleNamespace(power_plugged=False)
    monkeypatch.setattr("psutil.sensors_battery", lambda: battery, raising=False)
    found = desk()
    pass_seconds(found, 100)
    assert not found.processes and "waits for mains power" in found.words()
    battery.power_plugged = True
    pass_seconds(found, 100)
    assert len(found.processes) == 1


def test_what_is_better_is_taken_and_the_next_run_waits(desk):
    found = desk()
    process = begun(found)
    process.give(BETTER)
    pass_seconds(found, 1)
    assert predictor_file("model one").read_bytes() == b"a predictor"
    assert (own_dir() / "model one.safetensors").read_bytes() == b"a predictor of before"
    learnt = read_learnt("model one")
    assert learnt.kept == learnt.last and learnt.kept.recall_after == 0.8 and learnt.mark == 40
    assert "from 100 tokens of 9 conversations: recall 0.700 → 0.800, in use from the next load" in found.words()
    assert not list(runs_dir().iterdir())
    record(found, conversations(40, 24, seed=1))
    pass_seconds(found, 100)
    assert len(found.processes) == 1 and "some 4 hours" in found.words()


def test_what_is_no_better_is_discarded_and_said(desk):
    found = desk()
    begun(found).give(BETTER | {"recall_after": 0.699, "kept": False})
    pass_seconds(found, 1)
    assert not predictor_file("model one").exists() and not list(runs_dir().iterdir())
    assert read_learnt("model one").kept is None
    assert "was discarded: it recalls 0.699, the predictor in use 0.700." in found.words()


@pytest.mark.parametrize("how", ["killed", "refused", "too long"])
def test_a_run_without_a_result_leaves_nothing_but_a_sentence(desk, how):
    found = desk()
    process = begun(found)
    process.run.candidate.write_bytes(b"half a predic")
    if how == "too long":
        process.spent = LIMITS.run_seconds + 1
    else:
        process.refused = {"cause": "There is too little.", "remedy": ""} if how == "refused" else None
        process.alive = False
    pass_seconds(found, 1)
    assert not predictor_file("model one").exists() and not list(runs_dir().iterdir())
    said = {"killed": "code -9", "refused": "There is too little.", "too long": "more than 600 seconds"}[how]
    assert said in found.words() and "killed" in process.log
    pass_seconds(found, 100)
    assert len(found.processes) == 1


@pytest.mark.parametrize("from_elsewhere", [False, True])
def test_forgetting_ends_a_run_and_takes_all_that_was_learnt(desk, from_elsewhere):
    """`elsewhere` is `trace forget` in a terminal."""
    found = desk()
    begun(found).give(BETTER)
    pass_seconds(found, 1)
    record(found, conversations(40, 24, seed=1))
    write_learnt("model one", read_learnt("model one").model_copy(update={"ended": 1.0}))  # long ago
    process = begun(found)
    process.run.candidate.write_bytes(b"nearly a predictor")
    assert len(found.processes) == 2
    assert (forget_all() if from_elsewhere else found.learning.forget()) > 0
    process.child.wait(10)
    process.learnt = BETTER
    pass_seconds(found, 1)
    assert not process.alive and not predictor_file("model one").exists() and not list(runs_dir().iterdir())
    assert [summary.tokens for summary in recorded()] == [0] and read_learnt("model one").kept is None
    assert (own_dir() / "model one.safetensors").exists()  # not learnt from chats
    assert "waits for 200 more recorded tokens" in found.words()


def test_closing_leaves_a_run_that_the_next_start_goes_on_with(desk):
    found = desk()
    process = begun(found)
    (process.run.folder / "candidate.safetensors.checkpoint").write_bytes(b"so far")
    found.learning.close()
    assert process.log[0] == "left" and process.run.folder.exists()
    record(found, conversations(3, 24, seed=1))
    again = begin_run("model one", 43)
    assert again.mark == 40  # the same chats, or the checkpoint would not fit


def test_two_windows_do_not_learn_at_once(desk, monkeypatch):
    found = desk()
    other = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    try:
        run = begin_run("model one", 1)
        text = run.model_copy(update={"owner": Worker.of(other.pid)}).model_dump_json()
        (run.folder / "run.json").write_text(text)
        found.learning.tick()
        pass_seconds(found, 100)
        assert not found.processes and "Another window" in found.words()
    finally:
        other.kill()
        other.wait()
    pass_seconds(found, 100)
    assert len(found.processes) == 1


def test_a_process_left_by_a_program_that_crashed_is_ended(desk):
    left = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    run = begin_run("model one", 1)
    gone = Worker(pid=PID, born=1.0)
    (run.folder / "run.json").write_text(
        run.model_copy(update={"owner": gone, "child": Worker.of(left.pid)}).model_dump_json()
    )
    begin_run("model one", 1)
    left.wait(10)
    forget_runs()
    forget_runs()
    assert not list(runs_dir().iterdir())


def test_off_says_what_is_still_in_use(desk):
    found = desk()
    begun(found).give(BETTER)
    pass_seconds(found, 1)
    found.learning.switch(False)
    assert "off. What was learnt before stays in use until it is forgotten." in found.words()


def test_the_explanation_says_what_it_costs():
    words = learning_explanation(LearningLimits())
    for part in ("60 seconds", "lowest priority", "one core", "10 minutes", "gigabyte", "this machine", "only if"):
        assert part in words
