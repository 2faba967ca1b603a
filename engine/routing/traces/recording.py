"""Recording as the engine offers it: into memory for benches, into a store for training, or off.

Each place for a chat has a recorder of its own, so that chats decoded together are conversations apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.errors import UnsupportedModel
from engine.routing.lookahead import RouterLookahead
from engine.routing.passes import ChatPasses
from engine.routing.traces.recorder import RoutingRecorder
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_store import TraceStore
from engine.routing.traces.trace_writer import TraceWriter


class Recording:
    """Owns the recorders, and while there is a store the thread that writes to it.

    All but `problem` is called between two passes.
    """

    def __init__(self, model: Any, passes: ChatPasses, experts_per_layer: Sequence[int], top_k: int) -> None:
        self._model, self._passes = model, passes
        self._experts_per_layer, self._top_k = experts_per_layer, top_k
        self._recorders: list[RoutingRecorder] = []
        self._writer: TraceWriter | None = None
        self._last_problem: str | None = None
        self._hook: Any = None

    @property
    def problem(self) -> str | None:
        """Why recording stopped by itself, in a sentence; None while all is well."""
        return self._last_problem if self._writer is None else self._writer.problem

    def new_recorder(self) -> RoutingRecorder:
        """For one more chat beside the others; call before anything is recorded."""
        self._recorders.append(RoutingRecorder(self._experts_per_layer, self._top_k))
        return self._recorders[-1]

    def new_conversation(self) -> None:
        """The next prompt, wherever it is read, begins a conversation of its own."""
        for recorder in self._recorders:
            recorder.new_conversation()

    def to_memory(self, on: bool) -> None:
        """Starts afresh, or stops."""
        self._stop()
        if on:
            for recorder in self._recorders:
                recorder.start()

    def take(self) -> list[RoutingTrace]:
        """What is in memory, a trace for each conversation; empties the memory."""
        return [trace for recorder in self._recorders for trace in recorder.take()]

    def to_store(self, store: TraceStore | None, ahead: int = 0, hidden: bool = False, taps: bool = True) -> None:
        """Raises UnsupportedModel where this model cannot give what is asked for, and then records as before."""
        lookahead = RouterLookahead(self._model) if store is not None and ahead else None
        norm = self._final_norm() if store is not None and hidden else None
        self._stop()
        if store is None:
            return
        self._writer = TraceWriter(store)
        for recorder in self._recorders:
            recorder.start(self._writer, lookahead, ahead, hidden, taps)
        if norm is not None:  # transformers' forward; the fast path tells it itself
            self._hook = norm.register_forward_hook(
                lambda _module, _args, out: self._passes.final_hidden(out.flatten(0, 1).float().cpu())
            )

    def flush(self) -> None:
        """Hands what is recorded to the writer: an answer has ended."""
        for recorder in self._recorders:
            recorder.flush()

    def wait(self) -> None:
        """Returns when everything recorded is in the store."""
        self.flush()
        if self._writer is not None:
            self._writer.wait()

    def _stop(self) -> None:
        for recorder in self._recorders:
            recorder.stop()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._last_problem = None
        if self._writer is not None:
            self._writer.close()
            self._last_problem, self._writer = self._writer.problem, None

    def _final_norm(self) -> Any:
        norm = getattr(getattr(self._model, "model", None), "norm", None)
        if norm is None:
            raise UnsupportedModel(
                f"Where {type(self._model).__name__} normalises its last hidden states is not known.",
                "Record without hidden states.",
            )
        return norm
