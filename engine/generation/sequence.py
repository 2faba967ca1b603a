"""One chat's tokens inside the model: what the KV cache holds, how to extend it, what a new prompt can keep of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from engine.cache.expert_cache import ExpertCache
from engine.model.kv_cache import KvCache, context_full
from engine.routing.passes import PassListener

OnChunk = Callable[[int, int], None]


class StepDecoder(Protocol):
    """The decoding fast path."""

    def step(self, token_id: int) -> np.ndarray:
        """fp32 logits [vocab] after this token; the buffer is re-used by the next call."""

    @property
    def last_hidden(self) -> np.ndarray:
        """[1, width] float32: the final normalised hidden state of the step before."""


class TokenSequence:
    """The ids whose keys and values are in the cache, and the two ways to add to them: prefill and step."""

    def __init__(
        self,
        model: PreTrainedModel,
        kv: KvCache,
        experts: ExpertCache,
        top_k: int,
        prefill_rows: int,
        fast_decoder: StepDecoder | None,
        listener: PassListener,
    ) -> None:
        self._model = model
        self._kv = kv
        self._experts = experts
        self._top_k = top_k
        self._rows = prefill_rows
        self._fast = fast_decoder
        self._listener = listener
        self._ids: list[int] = []

    @property
    def length(self) -> int:
        """Positions in the KV cache."""
        return len(self._ids)

    @property
    def context_length(self) -> int:
        return self._kv.context_length

    def keep_common_start(self, prompt: Sequence[int]) -> int:
        """Forgets what differs from `prompt`, keeping at most all but its last token. Returns how many stay.

        Models with recurrent state cannot go back: they keep everything or, mostly, nothing.
        """
        common = _common_start(self._ids, prompt[:-1])
        kept = common if self._kv.can_crop else 0
        self._listener.kept(common, kept, len(self._ids))
        self._kv.crop(kept)
        del self._ids[kept:]
        return kept

    def chunks(self, prompt: Sequence[int]) -> list[Sequence[int]]:
        """What is left to read of `prompt`, in prefill passes. Raises ContextFull before anything is computed."""
        if len(prompt) > self.context_length:
            raise context_full(len(prompt), self.context_length)
        rest = prompt[self.length :]
        rows = self._rows if self._kv.can_crop else len(rest)  # recurrent layers take a prompt in one pass only
        return [rest[start : start + rows] for start in range(0, len(rest), rows)]

    def prefill(self, chunk: Sequence[int], cancelled: Callable[[], bool] = lambda: False) -> torch.Tensor:
        """Reads one pass of tokens. Returns fp32 logits [vocab] after the last.

        Raises Cancelled within a layer of `cancelled()`; what was read before this pass stays.
        """
        self._experts.begin_prefill(len(chunk), self._top_k, cancelled)
        try:
            return self._forward(chunk, decoded=False)
        finally:
            self._experts.begin_decode()

    def step(self, token_id: int) -> torch.Tensor:
        """Reads one token. Returns fp32 logits [vocab]. Raises ContextFull."""
        if self.length + 1 > self.context_length:
            raise context_full(self.length + 1, self.context_length)
        self._experts.begin_step(token_id)
        fast = self._fast
        if fast is None:
            logits = self._forward([token_id], decoded=True)
        else:
            logits = self._guarded(lambda: self._fast_step(fast, token_id), [token_id], decoded=True)
        self._experts.step_ended()
        return logits

    def forget(self) -> None:
        """Drops the chat."""
        self._kv.crop(0)
        self._ids.clear()

    def _forward(self, ids: Sequence[int], decoded: bool) -> torch.Tensor:
        return self._guarded(lambda: self._model_forward(ids), ids, decoded)

    def _fast_step(self, fast: StepDecoder, token_id: int) -> torch.Tensor:
        logits = torch.from_numpy(fast.step(token_id))
        self._listener.final_hidden(fast.last_hidden)
        return logits

    def _guarded(self, compute: Callable[[], torch.Tensor], ids: Sequence[int], decoded: bool) -> torch.Tensor:
        """Computes, keeping ids, KV cache and recorded routing in step: an interrupted pass leaves all as they were."""
        self._listener.begin_pass(self.length, ids, decoded)
        try:
            with torch.inference_mode():
                logits = compute()
        except BaseException:
            self._listener.drop_pass()
            self._roll_back()
            raise
        self._ids.extend(ids)
        self._listener.end_pass()
        return logits

    def _roll_back(self) -> None:
        if self._kv.can_crop:
            self._kv.crop(self.length)
        else:
            self.forget()

    def _model_forward(self, ids: Sequence[int]) -> torch.Tensor:
        output = self._model(input_ids=torch.tensor([ids]), past_key_values=self._kv, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1].float()


def _common_start(left: Sequence[int], right: Sequence[int]) -> int:
    for position, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return position
    return min(len(left), len(right))
