"""One answer: read the prompt, then choose, hand out and read tokens until there is a reason to stop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch

from engine.errors import Cancelled
from engine.generation.activity import Activity
from engine.generation.sampling import Sampler
from engine.generation.sequence import TokenSequence
from engine.generation.step_gate import StepGate

Token = tuple[int | None, str | None]  # id, and on the last one why it ended


class Answer:
    """Generates at most `max_new_tokens` ids after `prompt`, ending early with (and including) an id of `end_ids`."""

    def __init__(
        self,
        sequence: TokenSequence,
        sampler: Sampler,
        prompt: Sequence[int],
        max_new_tokens: int,
        end_ids: Collection[int],
        gate: StepGate,
        activity: Activity,
        cancelled: Callable[[], bool],
    ) -> None:
        self._sequence, self._sampler = sequence, sampler
        self._prompt = list(prompt)
        self._max_new_tokens, self._end_ids = max_new_tokens, end_ids
        self._gate, self._activity, self._cancelled = gate, activity, cancelled

    def tokens(self) -> Iterator[Token]:
        """(id, None) for each token, with the reason on the last: "stop", "length" (also: the context is full) or,
        after the last token and without an id, "cancelled".
        """
        with self._activity.answer():
            logits = self._read_prompt()
            if logits is None:
                yield None, "cancelled"
                return
            ids = list(self._prompt)
            token = self._sampler.choose(logits, ids)
            while True:
                ids.append(token)
                self._activity.token()
                reason = self._reason_to_end(token, len(ids))
                yield token, reason
                if reason is not None:
                    return
                if self._cancelled():
                    yield None, "cancelled"
                    return
                with self._gate.step(), self._activity.step():
                    token = self._sampler.choose(self._sequence.step(token), ids)

    def _read_prompt(self) -> torch.Tensor | None:
        """Logits after the prompt; None when cancelled on the way."""
        with self._gate.step():
            self._sequence.keep_common_start(self._prompt)
            chunks = self._sequence.chunks(self._prompt)
        self._activity.prefill_planned(sum(map(len, chunks)))
        logits = None
        for chunk in chunks:
            try:
                with self._gate.step(), self._activity.prefill(len(chunk)):
                    logits = self._sequence.prefill(chunk, self._cancelled)
            except Cancelled:
                return None
        return None if self._cancelled() else logits

    def _reason_to_end(self, token: int, total: int) -> str | None:
        if token in self._end_ids:
            return "stop"
        new_tokens = total - len(self._prompt)
        if new_tokens >= self._max_new_tokens or total > self._sequence.context_length:
            return "length"
        return None
