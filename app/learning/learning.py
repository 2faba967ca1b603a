"""Learning from the person's own chats: whether, when, and what becomes of it. A process of its own does the work.

It begins and goes on only while nothing is asked, learns from what is recorded (`app/routing_records.py`), and what
comes of it is taken only where it foretells chats that were put aside better than the predictor in force.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import psutil

from app.learning.child import job
from app.learning.learnt import Learnt, read_learnt, take
from app.learning.need import LearningLimits, Need, need_of
from app.learning.process import Learner, LearningProcess
from app.learning.run import Run, begin_run
from app.preferences import Preferences
from app.routing_records import RoutingRecords
from app.settings import Settings
from engine.errors import EngineError, InvalidSetting

WORKING_TICK_SECONDS, QUIET_TICK_SECONDS = 0.2, 1.0
CLOSING_SECONDS = 10.0


@dataclass(frozen=True)
class LearningState:
    """For the page. `share` of the training that is done, while it learns or is suspended; `elsewhere`: another
    window of the program learns."""

    phase: Literal["off", "not recording", "waiting", "idle", "learning", "suspended"] = "off"
    share: float = 0.0
    need: Need = Need()
    elsewhere: bool = False
    learnt: Learnt = Learnt()

    def with_problem(self, problem: str) -> LearningState:
        """The same, with what went wrong just now."""
        return replace(self, learnt=self.learnt.model_copy(update={"problem": problem}))


class Learning:
    """Whether the person wants it, and the run in progress. Any thread may ask."""

    def __init__(
        self,
        records: RoutingRecords,
        settings: Settings,
        preferences: Preferences,
        is_busy: Callable[[], bool],
        limits: LearningLimits | None = None,
        start: Callable[[str, Run], Learner] = lambda job, run: LearningProcess(job, run.folder),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_busy()`: whether an answer is being written, or the model is not ready."""
        self.limits = limits or LearningLimits()
        self._records, self._preferences, self._is_busy = records, preferences, is_busy
        self._start_process, self._clock = start, clock
        self._wanted = settings.learn_from_chats
        self._lock = threading.RLock()
        self._busy_at, self._looked_at, self._rests_at = clock(), -math.inf, math.inf
        self._run: Run | None = None
        self._process: Learner | None = None
        self._state = LearningState()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="learning", daemon=True)

    @property
    def on(self) -> bool:
        """Whether the person wants it and it is possible: there is no learning without recording."""
        return self._wanted and self._records.on

    @property
    def state(self) -> LearningState:
        """As of the last tick."""
        return self._state if self.on else replace(self._state, phase="off")

    def start(self) -> None:
        """Watches for idle time from now on."""
        self._thread.start()

    def switch(self, on: bool) -> None:
        """Acts at once and is kept for the next start. Raises InvalidSetting where nothing is recorded."""
        if on and not self._records.on:
            raise InvalidSetting("Learning needs recorded routing.", "Switch recording on first.")
        with self._lock:
            self._wanted = on
            self._preferences.set_learn_from_chats(on)
            self._records.switch_hidden(on)
            if not on:
                self._leave()
            self._look()

    def switch_recording(self, on: bool) -> None:
        """Without recording there is no learning either."""
        self._records.switch(on)
        if not on and self._wanted:
            self.switch(False)

    def forget(self) -> int:
        """Deletes what was recorded and what was learnt, ending the run in progress; returns the bytes freed.

        Raises TraceStoreUnavailable.
        """
        with self._lock:
            self._kill()
            try:
                return self._records.forget()
            finally:
                self._look()

    def close(self) -> None:
        """Ends the run in progress; the next start of the program goes on with it."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(CLOSING_SECONDS)
        with self._lock:
            self._leave()

    def tick(self) -> None:
        """Looks whether something is to be done: called by the thread."""
        with self._lock:
            busy = self._is_busy()
            now = self._clock()
            if busy:
                self._busy_at = now
            idle = now - self._busy_at >= self.limits.idle_seconds
            if self._process is not None:
                self._follow(self._process, idle)
            elif self.on and now - self._looked_at >= self.limits.look_seconds:
                self._look()
                if idle and self._state.need.met:
                    self._begin()

    # -- with the lock held ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        """At what is recorded, and what was learnt."""
        self._looked_at = self._clock()
        recording = self._records.recording
        if recording is None or not self.on:
            self._state = LearningState("not recording")
            return
        learnt = read_learnt(recording.fingerprint)
        try:
            need = need_of(recording.fingerprint, self._records, learnt, self.limits)
            self._state = LearningState("idle" if need.met else "waiting", need=need, learnt=learnt)
        except EngineError as error:
            self._state = LearningState("not recording", learnt=learnt).with_problem(error.cause)

    def _begin(self) -> None:
        recording = self._records.recording
        assert recording is not None
        try:
            run = self._run = begin_run(recording.fingerprint, self._records.mark())
            if run is None:
                self._state = replace(self._state, phase="waiting", elsewhere=True)
                return
            what = job(recording.path, run.mark, run.candidate, self.limits.training_minutes)
            self._process = self._start_process(what, run)
            run.register_child(self._process.pid)
            self._state = replace(self._state, phase="learning", share=0.0)
        except (OSError, psutil.Error, EngineError) as error:
            self._end(problem=str(error))

    def _follow(self, process: Learner, idle: bool) -> None:
        assert self._run is not None
        if not self._run.is_registered():
            self._kill()
            self._look()
        elif not process.alive:
            self._end()
        elif process.cpu_seconds() > self.limits.run_seconds:
            self._end(problem=f"it took more than {self.limits.run_seconds:.0f} seconds of computing time")
        elif self._clock() - self._rests_at >= self.limits.resting_seconds:
            self._leave()  # gives its memory back, too
            self._look()
        else:
            self._rest(process, not idle)

    def _rest(self, process: Learner, resting: bool) -> None:
        process.suspend() if resting else process.resume()
        self._rests_at = min(self._rests_at, self._clock()) if resting else math.inf
        share = process.done / process.total if process.total else 0.0
        self._state = replace(self._state, phase="suspended" if resting else "learning", share=share)

    def _end(self, problem: str | None = None) -> None:
        """Takes what the run gave, if it is better, and writes down how it went."""
        run, process = self._run, self._process
        learnt = process.learnt if process is not None and problem is None else None
        if process is not None and problem is None and learnt is None:
            problem = process.refused["cause"] if process.refused else process.problem
        self._kill(remove=False)
        try:
            if run is not None and run.is_registered():
                take(run, learnt, problem)
        except OSError as error:
            problem = str(error)
        finally:
            if run is not None:
                run.remove()
        self._look()
        if problem is not None:
            self._state = self._state.with_problem(problem)

    def _leave(self) -> None:
        """So that it can be gone on with."""
        process, self._process, self._run, self._rests_at = self._process, None, None, math.inf
        if process is not None:
            process.leave()

    def _kill(self, remove: bool = True) -> None:
        process, run = self._process, self._run
        self._process, self._run, self._rests_at = None, None, math.inf
        if process is not None:
            process.kill()
        if run is not None and remove:
            run.remove()

    def _watch(self) -> None:
        while not self._ending.wait(QUIET_TICK_SECONDS if self._process is None else WORKING_TICK_SECONDS):
            self.tick()
