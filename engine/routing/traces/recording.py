"""Recording as the engine offers it: into memory for benches, into a store for training, or off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.errors import UnsupportedModel
from engine.routing.lookahead import RouterLookahead
from engine.routing.traces.recorder import RoutingRecorder
from engine.routing.traces.trace_store import TraceStore
from engine.routing.traces.trace_writer import TraceWriter


class Recording:
    """Owns the recorder, and while there is a store the thread that writes to it.

    All but `problem` is called between two passes.
    """

    def __init__(self, model: Any, experts_per_layer: Sequence[int], top_k: int) -> None:
        self.recorder = RoutingRecorder(experts_per_layer, top_k)
        self._model = model
        self._writer: TraceWriter | None = None
        self._last_problem: str | None = None
        self._hook: Any = None

    @property
    def problem(self) -> str | None:
        """Why recording stopped by itself, in a sentence; None while all is well."""
        return self._last_problem if self._writer is None else self._writer.problem

    def to_memory(self, on: bool) -> None:
        """Starts afresh, or stops."""
        self._stop()
        if on:
            self.recorder.start()

    def to_store(self, store: TraceStore | None, ahead: int = 0, hidden: bool = False, taps: bool = True) -> None:
        """Raises UnsupportedModel where this model cannot give what is asked for, and then records as before."""
        lookahead = RouterLookahead(self._model) if store is not None and ahead else None
        norm = self._final_norm() if store is not None and hidden else None
        self._stop()
        if store is None:
            return
        self._writer = TraceWriter(store)
        self.recorder.start(self._writer, lookahead, ahead, hidden, taps)
        if norm is not None:  # transformers' forward; the fast path tells it itself
            self._hook = norm.register_forward_hook(
                lambda _module, _args, out: self.recorder.final_hidden(out[0].float().cpu())
            )

    def flush(self) -> None:
        """Hands what is recorded to the writer: an answer has ended."""
        self.recorder.flush()

    def wait(self) -> None:
        """Returns when everything recorded is in the store."""
        self.recorder.flush()
        if self._writer is not None:
            self._writer.wait()

    def _stop(self) -> None:
        self.recorder.stop()
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
