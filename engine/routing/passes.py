"""Who is told of every forward pass: recorders and predictors alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class PassListener(Protocol):
    """Told what is read, what each layer's router chose, and how it ended; all from the computing thread."""

    def kept(self, common: int, kept: int, total: int) -> None:
        """A prompt shares its first `common` tokens with the `total` before; `kept` of them need not be read again."""

    def begin_pass(self, position: int, ids: Sequence[int], decoded: bool) -> None:
        """`ids` are about to be read from `position` on, by a decoding step or in prefill."""

    def observed(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        """The real routing of `layer` for all rows of the pass: hidden [rows, width] fp32, the others [rows, k]."""

    def final_hidden(self, hidden: Any) -> None:
        """The final hidden state [rows, width] of the pass, where it is at hand."""

    def end_pass(self) -> None:
        """The pass succeeded."""

    def drop_pass(self) -> None:
        """The pass was interrupted: nothing of it counts."""


class PassListeners:
    """Several listeners as one."""

    def __init__(self, *listeners: PassListener) -> None:
        self._listeners = listeners

    def kept(self, common: int, kept: int, total: int) -> None:
        for listener in self._listeners:
            listener.kept(common, kept, total)

    def begin_pass(self, position: int, ids: Sequence[int], decoded: bool) -> None:
        for listener in self._listeners:
            listener.begin_pass(position, ids, decoded)

    def observed(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        for listener in self._listeners:
            listener.observed(layer, hidden, top_k_index, top_k_weights)

    def final_hidden(self, hidden: Any) -> None:
        for listener in self._listeners:
            listener.final_hidden(hidden)

    def end_pass(self) -> None:
        for listener in self._listeners:
            listener.end_pass()

    def drop_pass(self) -> None:
        for listener in self._listeners:
            listener.drop_pass()


class ChatPasses:
    """Which chats' tokens are being read: what the cache observes goes to them, row n to the n-th that began.

    A pass of one chat may have many rows, a pass of several has a row of each.
    """

    def __init__(self) -> None:
        self._reading: list[PassListener] = []

    def listener(self, *listeners: PassListener) -> PassListener:
        """One chat's: tell it when passes begin and end; what is observed on the way reaches it from here."""
        return _ChatListener(self._reading, *listeners)

    def observed(self, layer: int, hidden: Any, top_k_index: Any, top_k_weights: Any) -> None:
        """The real routing of `layer` for all rows of the pass, as a PassListener is told it."""
        if len(self._reading) == 1:
            self._reading[0].observed(layer, hidden, top_k_index, top_k_weights)
            return
        if not self._reading:
            return
        index, weights = np.asarray(top_k_index)[:, None], np.asarray(top_k_weights)[:, None]
        for listener, *row in zip(self._reading, hidden[:, None], index, weights, strict=True):
            listener.observed(layer, *row)

    def final_hidden(self, hidden: Any) -> None:
        """The final hidden states [rows, width] of the pass."""
        if len(self._reading) == 1:
            self._reading[0].final_hidden(hidden)
            return
        for row, listener in enumerate(self._reading):
            listener.final_hidden(hidden[row : row + 1])


class _ChatListener(PassListeners):
    def __init__(self, reading: list[PassListener], *listeners: PassListener) -> None:
        super().__init__(*listeners)
        self._reading = reading

    def begin_pass(self, position: int, ids: Sequence[int], decoded: bool) -> None:
        super().begin_pass(position, ids, decoded)
        self._reading.append(self)

    def end_pass(self) -> None:
        self._reading.remove(self)
        super().end_pass()

    def drop_pass(self) -> None:
        self._reading.remove(self)
        super().drop_pass()
