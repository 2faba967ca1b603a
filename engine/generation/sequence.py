"""One chat's tokens inside the model: what the KV cache holds, how to extend it, what a new prompt can keep of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from engine.cache.expert_cache import ExpertCache
from engine.errors import NotEnoughMemory
from engine.memory_relief import MemoryRelief
from engine.model.kv_cache import KvCache, context_full
from engine.routing.passes import PassListener
from engine.routing.predictor_feed import PredictorFeed

FEWEST_ROWS = 32  # of a prefill pass, however short memory is
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
        relief: MemoryRelief | None = None,
        feed: PredictorFeed | None = None,
    ) -> None:
        """`relief`: what to do when the device runs out of memory; None where that cannot be helped. `feed`: this
        chat's history, from which its steps are predicted while no other chat's come between them.
        """
        self._model = model
        self._kv = kv
        self._experts = experts
        self._top_k = top_k
        self._rows = prefill_rows
        self._fast = fast_decoder
        self._listener = listener
        self._relief = relief
        self._feed = feed
        self._device = next(model.parameters()).device
        self._ids: list[int] = []

    @property
    def length(self) -> int:
        """Positions in the KV cache."""
        return len(self._ids)

    @property
    def kv(self) -> KvCache:
        """For passes that read a token of several chats, each chat `reading` its own."""
        return self._kv

    @property
    def kv_bytes(self) -> int:
        """What keys and values have reserved so far."""
        return self._kv.nbytes

    @property
    def context_length(self) -> int:
        return self._kv.context_length

    def shares(self, prompt: Sequence[int]) -> int:
        """How many tokens of its start `prompt` has in common with what is here."""
        return _common_start(self._ids, prompt)

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

    def next_chunk(self, prompt: Sequence[int], at_most: int | None = None) -> Sequence[int]:
        """What to read next of `prompt`, in one prefill pass, of at most so many tokens; empty after the last.

        Raises ContextFull before anything is computed.
        """
        if len(prompt) > self.context_length:
            raise context_full(len(prompt), self.context_length)
        rest = prompt[self.length :]
        if not self._kv.can_crop:  # recurrent layers take a prompt in one pass only
            return rest
        return rest[: self._rows if at_most is None else min(self._rows, at_most)]

    @property
    def prefill_rows(self) -> int:
        """Tokens of a prefill pass at most."""
        return self._rows

    def prefill(self, chunk: Sequence[int], cancelled: Callable[[], bool] = lambda: False) -> torch.Tensor:
        """Reads one pass of tokens. Returns fp32 logits [vocab] after the last.

        Raises Cancelled within a layer of `cancelled()`; what was read before this pass stays. Where memory runs out,
        the cache and the passes become smaller; raises NotEnoughMemory when they cannot.
        """
        logits = None
        while logits is None or chunk:
            rows = chunk[: self._rows] if self._kv.can_crop else chunk
            read = self._relieved(partial(self._prefill, rows, cancelled), len(rows))
            if read is not None:
                logits, chunk = read, chunk[len(rows) :]
        return logits

    def _prefill(self, chunk: Sequence[int], cancelled: Callable[[], bool]) -> torch.Tensor:
        self._experts.begin_prefill(len(chunk), self._top_k, cancelled)
        try:
            return self._forward(chunk, decoded=False)
        finally:
            self._experts.begin_decode()

    def step(self, token_id: int, alone: bool = True) -> torch.Tensor:
        """Reads one token. Returns fp32 logits [vocab]. `alone`: no other chat's steps come between this one's.

        Raises ContextFull.
        """
        if self.length + 1 > self.context_length:
            raise context_full(self.length + 1, self.context_length)
        if alone:
            if self._feed is not None:
                self._feed.foretell()
            self._experts.begin_step(token_id)
        else:
            self._experts.begin_joint_step()
        fast = self._fast
        if fast is None:
            logits = self._slow_step(token_id)
        else:
            logits = self._guarded(lambda: self._fast_step(fast, token_id), [token_id], decoded=True)
        self._experts.step_ended()
        return logits

    def free(self) -> None:
        """Drops the chat and the memory of its keys and values. Not under a fast decoder, which shares it."""
        self._kv.free()
        self._ids.clear()

    def forget(self) -> None:
        """Drops the chat."""
        self._kv.crop(0)
        self._ids.clear()

    def _slow_step(self, token_id: int) -> torch.Tensor:
        compute = partial(self._forward, [token_id], decoded=True)
        while (logits := self._relieved(compute, rows=1)) is None:
            """Again, with what was given up."""
        return logits

    def _relieved(self, compute: Callable[[], torch.Tensor], rows: int) -> torch.Tensor | None:
        """What `compute` returns; None when memory ran out and some was given up: worth another try.

        Raises NotEnoughMemory when nothing can be given up, or when the chat was lost with the failed pass.
        """
        if self._relief is None:
            return compute()
        length = self.length
        try:
            return compute()
        except torch.OutOfMemoryError as error:
            shortage = str(error).partition("\n")[0]
        # outside of the handler: the failed pass's tensors are let go with its traceback
        gave = self._relief.give_up_slots()
        if self._kv.can_crop and rows > FEWEST_ROWS:
            self._rows, gave = max(FEWEST_ROWS, rows // 2), True
        if not gave or self.length != length:
            raise NotEnoughMemory(
                f"The card ran out of memory in the middle of the answer ({shortage})",
                "Close other programs that use the card, lower the context length, or ask again: the cache is "
                "smaller now.",
            )
        return None

    def _forward(self, ids: Sequence[int], decoded: bool) -> torch.Tensor:
        return self._guarded(lambda: self._model_forward(ids), ids, decoded)

    def _fast_step(self, fast: StepDecoder, token_id: int) -> torch.Tensor:
        logits = torch.from_numpy(fast.step(token_id))
        self._listener.final_hidden(fast.last_hidden)
        return logits

    def tell_hidden(self, hidden: np.ndarray) -> None:
        """The final hidden state [1, width] of a pass in progress that was computed elsewhere."""
        self._listener.final_hidden(hidden)

    @contextmanager
    def reading(self, ids: Sequence[int], decoded: bool) -> Iterator[None]:
        """Around a pass that reads `ids`: keeps ids, KV cache and recorded routing in step. An interrupted pass leaves
        all as they were.
        """
        self._listener.begin_pass(self.length, ids, decoded)
        try:
            yield
        except BaseException:
            self._listener.drop_pass()
            self._roll_back()
            raise
        self._ids.extend(ids)
        self._listener.end_pass()

    def _guarded(self, compute: Callable[[], torch.Tensor], ids: Sequence[int], decoded: bool) -> torch.Tensor:
        with self.reading(ids, decoded), torch.inference_mode():
            return compute()

    def _roll_back(self) -> None:
        if self._kv.can_crop:
            self._kv.crop(self.length)
        else:
            self.forget()

    def _model_forward(self, ids: Sequence[int]) -> torch.Tensor:
        output = self._model(
            input_ids=torch.tensor([ids], device=self._device),
            past_key_values=self._kv,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[0, -1].float().cpu()


def _common_start(left: Sequence[int], right: Sequence[int]) -> int:
    for position, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return position
    return min(len(left), len(right))
