"""The token scheduler: of the chats that wait for their next token, which are read together now."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from engine.errors import InvalidSetting
from engine.routing.shape import RoutingShape
from engine.scheduling.fairness import FairPick, least_bound
from engine.scheduling.group_rows import GroupRows
from engine.scheduling.groupings import (
    AUTO,
    CACHE_AWARE,
    OFF,
    WAVES,
    Grouping,
    Waiting,
    check_scheduler,
    make_grouping,
)
from engine.scheduling.measured_choice import MeasuredChoice
from engine.scheduling.paths import PathForecast
from engine.scheduling.scheduler_stats import SchedulerStats

MOST_PASSED_OVER = 8
LEAST_GROUPED = 4  # chats: two passes over fewer read the dense weights twice for next to nothing


@dataclass(frozen=True)
class SchedulerSettings:
    """`name`: one of SCHEDULER_NAMES. `group_size`: most tokens in a pass; None is as many as wait for "off", and half
    of them for a grouping, where four or more wait. `most_passed_over`: passes that may go by while a token waits, or
    twice as many as turns take, where that is more. Raises InvalidSetting.
    """

    name: str = AUTO
    group_size: int | None = None
    most_passed_over: int = MOST_PASSED_OVER

    def __post_init__(self) -> None:
        check_scheduler(self.name)
        if self.group_size is not None and self.group_size < 1:
            raise InvalidSetting(f"The group size is {self.group_size}.", "It must be 1 or more.")
        if self.most_passed_over < 0:
            raise InvalidSetting(f"most_passed_over is {self.most_passed_over}.", "It must be 0 or more.")


class TokenScheduler:
    """Chats are whatever objects the caller tells them apart by. One thread at a time, but for `use` and `stats`.

    absent: float32 [layers, experts], 1 where an expert is neither there nor coming, asked when a grouping needs it;
    rows: told of the routing of every pass; make_forecast: for at least `places` chats at once, called once needed;
    foresees: whether what a pass of several chats needs is loaded ahead, so that their paths serve that too.
    """

    def __init__(
        self,
        shape: RoutingShape,
        make_forecast: Callable[[], PathForecast],
        absent: Callable[[], np.ndarray],
        rows: GroupRows,
        places: int,
        foresees: Callable[[], bool] = lambda: False,
    ) -> None:
        self._foresees = foresees
        self.expected: np.ndarray | None = None
        """Within `group`: float32 [group, 1, layers, experts], how likely each one's token uses each expert; None where
        nobody wants to know."""
        self._shape, self._make_forecast = shape, make_forecast
        self._absent, self._rows = absent, rows
        self._paths = np.zeros((places, shape.layers, shape.experts), np.float32)
        self._free = list(range(places))
        self._chats: dict[Hashable, _Chat] = {}
        self._stats = SchedulerStats()
        self._asked: SchedulerSettings | None = None
        self._use(SchedulerSettings())

    def use(self, settings: SchedulerSettings) -> None:
        """From the next pass on; what was measured for "auto" is forgotten. From any thread."""
        self._asked = settings

    def _use(self, settings: SchedulerSettings) -> None:
        self._asked = None
        self._settings = settings
        self._stats = replace(self._stats, worst_wait_passes=0, worst_wait_seconds=0.0)
        names = (OFF, CACHE_AWARE) if settings.group_size else (WAVES, CACHE_AWARE)
        self._choice = MeasuredChoice(names if settings.name == AUTO else (settings.name,))
        self._groupings: dict[str, Grouping] = {}
        self._bound = 0

    def stats(self) -> SchedulerStats:
        """Since load; the worst waits since `use`."""
        return self._stats

    @contextmanager
    def group(self, chats: Sequence[Hashable], token_ids: Sequence[int]) -> Iterator[list[int]]:
        """Who is read now, as places in `chats`, each of which waits to have its token read; leaving it means that they
        were. After an exception they still wait.
        """
        began = time.perf_counter()
        if self._asked is not None:
            self._use(self._asked)
        self._meet(chats)
        name, size = self._way(len(chats))
        grouping = self._grouping(name)
        alone = size >= len(chats)  # nothing to choose
        chosen = list(range(len(chats))) if alone else self._choose(chats, token_ids, grouping, size)
        foreseen = len(chosen) > 1 and self._foresees()
        follows = foreseen or (grouping.needs_paths and not alone)
        self.expected = self._expect(chats, token_ids, chosen) if foreseen else None
        if follows:
            self._rows.begin(len(chosen))
        scheduling = time.perf_counter() - began
        try:
            yield chosen
        except BaseException:
            self._rows.take()
            raise
        ended = time.perf_counter()
        if follows:
            self._follow([self._chats[chats[place]] for place in chosen])
        self._count(chats, chosen, name, follows, ended - began, scheduling + time.perf_counter() - ended)

    def _way(self, waiting: int) -> tuple[str, int]:
        if not self._divides(waiting):
            return WAVES if self._settings.name == AUTO else self._settings.name, waiting
        name = self._choice.name(waiting)
        if name == WAVES:
            return name, waiting
        whole = waiting if name == OFF else -(-waiting // 2)
        return name, self._settings.group_size or whole

    def _divides(self, waiting: int) -> bool:
        """Whether so few are grouped at all, where nobody asked for a size."""
        return self._settings.group_size is not None or waiting >= LEAST_GROUPED

    def _grouping(self, name: str) -> Grouping:
        if name not in self._groupings:
            self._groupings[name] = make_grouping(name, self._shape.top_k)
        return self._groupings[name]

    def _meet(self, chats: Sequence[Hashable]) -> None:
        """Chats that are new take places, those that are gone leave theirs."""
        present = set(chats)
        for chat in [chat for chat in self._chats if chat not in present]:
            self._free.append(self._chats.pop(chat).place)
        now = time.perf_counter()
        for chat in chats:
            if chat not in self._chats:
                self._chats[chat] = _Chat(self._free.pop(), now)

    def _choose(self, chats: Sequence[Hashable], token_ids: Sequence[int], grouping: Grouping, size: int) -> list[int]:
        known = [self._chats[chat] for chat in chats]
        passed = np.array([chat.passed_over for chat in known])
        order = np.argsort(-passed, kind="stable")
        waiting = Waiting(np.array([chat.place for chat in known]), order)
        if grouping.needs_paths:
            self._predict(known, token_ids)
            waiting = Waiting(waiting.chats, order, self._paths[waiting.chats], self._absent())
        return grouping.group(waiting, FairPick(self._bound_for(len(chats), size) - passed, size))

    def _expect(self, chats: Sequence[Hashable], token_ids: Sequence[int], chosen: Sequence[int]) -> np.ndarray:
        group = [self._chats[chats[place]] for place in chosen]
        self._predict(group, [token_ids[place] for place in chosen])
        expected: np.ndarray = self._paths[[chat.place for chat in group]][:, None]
        return expected

    def _bound_for(self, waiting: int, size: int) -> int:
        """Never falls, since those who wait already were promised no less."""
        self._bound = max(self._bound, 2 * least_bound(waiting, size), self._settings.most_passed_over)
        return self._bound

    @cached_property
    def _forecast(self) -> PathForecast:
        return self._make_forecast()

    def _predict(self, known: Sequence[_Chat], token_ids: Sequence[int]) -> None:
        new = [(chat, token) for chat, token in zip(known, token_ids, strict=True) if not chat.predicted]
        if not new:
            return
        for chat, _ in new:
            if not chat.followed:
                self._forecast.begin(chat.place)
            chat.followed = chat.predicted = True
        places = [chat.place for chat, _ in new]
        self._paths[places] = self._forecast.predict(places, [token for _, token in new])

    def _follow(self, read: Sequence[_Chat]) -> None:
        """Tells the forecast what the group's tokens really used."""
        told = self._rows.take()
        for chat in read:
            chat.followed = told is not None
        if told is not None:
            self._forecast.observed([chat.place for chat in read], *told)

    def _count(
        self, chats: Sequence[Hashable], chosen: Sequence[int], name: str, follows: bool, took: float, own: float
    ) -> None:
        if self._divides(len(chats)):
            self._choice.took(len(chats), len(chosen), took)
        read, now = {chats[place] for place in chosen}, time.perf_counter()
        passes, seconds = 0, 0.0
        for key, chat in self._chats.items():
            if key not in read:
                chat.passed_over += 1
                continue
            passes, seconds = max(passes, chat.passed_over), max(seconds, now - chat.since)
            chat.followed = chat.followed and follows  # what was not told leaves a gap
            chat.passed_over, chat.predicted, chat.since = 0, False, now
        self._stats = self._stats.after(name, len(chosen), took, own, passes, seconds)


@dataclass
class _Chat:
    """One chat's waiting token. `since` it was known; `predicted`: its path is; `followed`: the forecast knows all of
    its chat's tokens but this one."""

    place: int
    since: float
    passed_over: int = 0
    predicted: bool = False
    followed: bool = False
