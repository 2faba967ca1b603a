"""From token ids to text as it is typed: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


class TextStream:
    """`push` ids one by one; text that might become a stop string is held back until it is clear."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that is now certain; "" while a character or a possible stop string is incomplete."""
        self._held += self._decoder.step(self._backend, token_id) or ""
        cut = min((at for text in self._stop if (at := self._held.find(text)) >= 0), default=-1)
        if cut >= 0:
            self.stopped = True
            piece, self._held = self._held[:cut], ""
            return piece
        keep = max((_overlap(self._held, text) for text in self._stop), default=0)
        piece = self._held[: len(self._held) - keep]
        self._held = self._held[len(piece) :]
        return piece

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        piece, self._held = self._held, ""
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
