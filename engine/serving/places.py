"""Which of the free places a prompt is answered in: keys and values of its own past, if they are still there."""

from __future__ import annotations

from collections.abc import Sequence

from engine.generation.sequence import TokenSequence


class Places:
    """Places for chats that are decoded together, each with keys and values of its own, which outlive an answer."""

    def __init__(self, sequences: Sequence[TokenSequence]) -> None:
        self._all = tuple(sequences)
        self._free = list(sequences)  # the one used longest ago first
        self.latest = sequences[0]
        """Taken last."""

    def __len__(self) -> int:
        return len(self._all)

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    def take(self, prompt: Sequence[int]) -> TokenSequence:
        """The free place whose chat goes on with `prompt`, at least for the most part, and shares the most with it;
        else the one used longest ago. A start that all chats share, as a system prompt, makes none of them the one
        that goes on.
        """
        going_on = [place for place in self._free if 2 * place.shares(prompt) >= place.length > 0]
        chosen = max(going_on, key=lambda place: place.shares(prompt)) if going_on else self._free[0]
        self._free.remove(chosen)
        self.latest = chosen
        return chosen

    def give_back(self, sequence: TokenSequence) -> None:
        """Its answer has ended; what it read stays for the chat's next question."""
        self._free.append(sequence)
