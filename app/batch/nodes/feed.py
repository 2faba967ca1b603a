"""Lines of a file on their way to workers: handed out by ticket, to whom they suit, never far ahead of the output."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator

from app.batch.nodes.spread import Spread

Line = tuple[int, str]
SAMPLE_LINES = 256  # read before the first is placed
TICKET_BATCHES = 4  # lines of a ticket, in batches of an engine, which runs half empty at a ticket's end
TICKETS_FOR_EACH = 4  # at least, of a short file, so that workers end at about the same time


def feed_sizes(lines: int, workers: int, batch_size: int) -> tuple[int, int]:
    """`ticket_lines` and `window_lines` of a job's PromptFeed."""
    share, fewest = math.ceil(lines / (workers * TICKETS_FOR_EACH)), min(batch_size, math.ceil(lines / workers))
    ticket_lines = max(min(TICKET_BATCHES * batch_size, max(fewest, share)), 1)
    return ticket_lines, max(SAMPLE_LINES, TICKETS_FOR_EACH * workers * ticket_lines)


class PromptFeed:
    """Who asks with a ticket gets `ticket_lines` lines; with the same ticket again, the same lines.

    At most `window_lines` lines are read beyond the one that is written next: that bounds what waits here, and in the
    output for its turn. `places` of them go to workers as they first ask. Plain Python, one thread at a time.
    """

    def __init__(
        self, lines: Iterator[Line], first: int, spread: Spread, places: int, ticket_lines: int, window_lines: int
    ) -> None:
        """`lines` begin with number `first`."""
        self._lines, self._spread = lines, spread
        self._ticket_lines, self._window_lines = ticket_lines, window_lines
        self._waiting: list[deque[Line]] = [deque() for _ in range(places)]
        self._given: dict[int, list[Line]] = {}
        self._asked: dict[str, int] = {}  # place of each worker, who asked last at the end
        self._read = self._written = first
        self._ended = False
        self._begun = False

    def take(self, ticket: int, worker: str) -> list[Line] | None:
        """Lines for `worker`; fewer than a ticket's only at the file's end. None: not before others are written."""
        if ticket not in self._given:
            lines = self._gather(self._place_of(worker))
            if lines is None:
                return None
            self._given[ticket] = lines
        return self._given[ticket]

    def written(self, number: int) -> None:
        """All lines before `number` are in the output."""
        self._written = number
        done = [ticket for ticket, lines in self._given.items() if not lines or lines[-1][0] < number]
        for ticket in done:
            del self._given[ticket]

    def _place_of(self, worker: str) -> int:
        place = self._asked.pop(worker, None)
        if place is None:
            free = set(range(len(self._waiting))) - set(self._asked.values())
            # All taken: of the one that has not asked for longest, since a worker that is gone never asks again.
            place = min(free) if free else self._asked.pop(next(iter(self._asked)))
        self._asked[worker] = place
        return place

    def _gather(self, place: int) -> list[Line] | None:
        own = self._waiting[place]
        while len(own) < self._ticket_lines and self._read_on():
            pass
        if not self._ended and sum(map(len, self._waiting)) < self._ticket_lines:
            return None
        lines = [own.popleft() for _ in range(min(len(own), self._ticket_lines))]
        while len(lines) < self._ticket_lines and any(self._waiting):
            lines.append(max(self._waiting, key=len).popleft())
        return sorted(lines)

    def _read_on(self) -> bool:
        """Places one more line, the first time many; whether there was one that may be read."""
        fresh = list(itertools.islice(self._lines, self._may_read()))
        if not fresh:
            self._ended |= self._may_read() > 0
            return False
        described = [self._spread.describe(*line) for line in fresh]
        if not self._begun:
            self._begun = True
            self._spread.begin(described)
        for line, what in zip(fresh, described, strict=True):
            self._waiting[self._spread.place(what, list(map(len, self._waiting)))].append(line)
        self._read = fresh[-1][0] + 1
        return True

    def _may_read(self) -> int:
        within = self._written + self._window_lines - self._read
        return max(min(within, 1 if self._begun else SAMPLE_LINES), 0)
