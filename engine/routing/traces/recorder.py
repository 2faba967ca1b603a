"""Records which experts each token took: told of every pass by the token sequence, of every layer by the cache."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from engine.routing.lookahead import RouterLookahead
from engine.routing.traces.recorded_pass import RecordedPass, RowShape
from engine.routing.traces.trace import RoutingTrace, joined

FLUSHED_ROWS = 256  # what a killed process may lose of an answer


class TraceSink(Protocol):
    """Where rows go beside memory."""

    problem: str | None

    def put(self, first: int, rows: RoutingTrace) -> None:
        """Keeps `rows` as positions `first`... of their conversation, in place of all from there on. Never raises."""


class RoutingRecorder:
    """The rows of the conversation in progress, kept in memory and, with a sink, handed over in pieces.

    Off until `start`. Everything but `observed` is called between two passes; not thread-safe.
    """

    def __init__(self, experts_per_layer: Sequence[int], top_k: int) -> None:
        self._shape = RowShape(tuple(experts_per_layer), top_k)
        self._on = False
        self._sink: TraceSink | None = None
        self._pass: RecordedPass | None = None
        self._finished: list[RoutingTrace] = []  # without a sink: conversations before this one
        self._conversation = uuid.uuid4().hex
        self._pieces: list[RoutingTrace] = []
        self._first = self._end = self._flushed = 0  # positions in the chat: of the first row, after the last
        self._split = False

    # -- what the owner calls -------------------------------------------------------------------------------------

    def start(
        self,
        sink: TraceSink | None = None,
        lookahead: RouterLookahead | None = None,
        distances: int = 0,
        hidden: bool = False,
        taps: bool = True,
    ) -> None:
        """Records afresh: with a sink on its way there, else in memory until `take`.

        `distances` > 0 asks for `ahead` (with a lookahead), `hidden` for the final hidden states and,
        with `taps`, those that a few routers on the way see.
        """
        self.stop()
        self._shape = RowShape(self._shape.experts_per_layer, self._shape.top_k, lookahead, distances, hidden, taps)
        self._on, self._sink = True, sink

    def stop(self) -> None:
        """Ends recording; what is not yet handed over is, and the rest of memory is emptied."""
        self.flush()
        self._on, self._sink, self._pass = False, None, None
        self.take()

    def flush(self) -> None:
        """Hands what is new to the sink."""
        if self._sink is None or self._flushed >= self._end:
            return
        rows = joined(self._pieces)
        self._pieces = [rows]
        self._sink.put(self._flushed, rows.rows(self._flushed - self._first, len(rows)))
        self._flushed = self._end

    def take(self) -> list[RoutingTrace]:
        """What is in memory, a trace for each conversation, in order; empties the memory."""
        rows = self._rows()
        taken = self._finished + ([] if rows is None else [rows])
        self._finished, self._pieces = [], []
        self._first = self._flushed = self._end
        return taken

    def new_conversation(self) -> None:
        """The next prompt begins a conversation of its own, whatever it shares with the last one."""
        self._split = True

    # -- what the computation calls -------------------------------------------------------------------------------

    def begin_pass(self, position: int, ids: Sequence[int], decoded: bool) -> None:
        """`ids` are about to be read from `position` on, by a decoding step or in prefill."""
        self._pass = None
        if self._sink is not None and self._sink.problem is not None:
            self.stop()
        if not self._on:
            return
        if position != self._end:  # recording began, or a pass was lost, in the middle of a chat
            self._end_conversation()
            self._start_conversation(position)
        self._pass = RecordedPass(self._shape, ids, decoded)

    def observed(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        """The real routing of `layer` for all rows of the pass: hidden [rows, width] fp32, the others [rows, k]."""
        if self._pass is not None:
            self._pass.observed(layer, hidden, top_k_index, top_k_weights)

    def final_hidden(self, hidden: Any) -> None:
        """The final hidden state [rows, width] of the pass, if it is asked for."""
        if self._pass is not None:
            self._pass.final_hidden(hidden)

    def end_pass(self) -> None:
        """The pass succeeded: its rows count."""
        ended, self._pass = self._pass, None
        if ended is None:
            return
        self._pieces.append(ended.rows(self._conversation))
        self._end += len(ended)
        if self._end - self._flushed >= FLUSHED_ROWS:
            self.flush()

    def drop_pass(self) -> None:
        """The pass was interrupted: it leaves no rows."""
        self._pass = None

    def kept(self, common: int, kept: int, total: int) -> None:
        """A prompt shares its first `common` tokens with the `total` before; `kept` of them need not be read again.

        Where at least half is shared, the conversation goes on from there; else another one begins, which gets the
        kept rows as its own.
        """
        if not self._on:
            return
        goes_on = 2 * common >= total and not self._split
        self._split = False
        if goes_on and kept == self._end:
            return
        rows, first, flushed = self._rows(), min(self._first, kept), min(self._flushed, kept)
        if not goes_on:
            self._end_conversation()
        stay = rows is not None and kept > first
        self._start_conversation(first if stay else kept, self._conversation if goes_on else None)
        if rows is not None and stay:
            self._pieces = [replace(rows.rows(0, kept - first), conversation=self._conversation)]
            self._end = kept
            self._flushed = flushed if goes_on else first  # the sink's rows beyond go when the next ones come

    # -- the conversation in progress -----------------------------------------------------------------------------

    def _rows(self) -> RoutingTrace | None:
        return joined(self._pieces) if self._pieces else None

    def _start_conversation(self, position: int, conversation: str | None = None) -> None:
        self._conversation = conversation or uuid.uuid4().hex
        self._pieces = []
        self._first = self._end = self._flushed = position
        self._split = False

    def _end_conversation(self) -> None:
        self.flush()
        rows = self._rows()
        if self._sink is None and rows is not None:
            self._finished.append(rows)
