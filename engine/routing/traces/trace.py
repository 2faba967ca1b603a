"""A routing trace: the tokens of one conversation and the experts that each took in each layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

NOBODY = -1  # in place of an expert's id


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """One conversation's rows, one for each position, in order.

    token_ids: int32 [tokens]; experts: int16 [tokens, layers, top k], the router's best first, NOBODY where a token
    used fewer; weights: float16, same shape; decoded: bool [tokens], False for positions read in prefill;
    ahead: float16 [tokens, layers, distances, experts] or None, the probabilities that the routers 1..distances
    layers further on give for the residual stream that this layer's router saw (zeros past the last layer);
    hidden: float16 [tokens, width] or None, the residual stream after the last layer, normalised;
    midway: float16 [tokens, taps, width] or None, what the routers of `tap_layers(layers)` saw.

    `conversation` is the same for everything that was one chat: training and test sets are split by it.
    """

    conversation: str
    token_ids: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    decoded: np.ndarray
    ahead: np.ndarray | None = None
    hidden: np.ndarray | None = None
    midway: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def layers(self) -> int:
        return int(self.experts.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.experts.shape[2])

    def rows(self, start: int, stop: int) -> RoutingTrace:
        """Positions [start, stop) of the same conversation."""
        cut = slice(start, stop)
        return RoutingTrace(
            self.conversation,
            self.token_ids[cut],
            self.experts[cut],
            self.weights[cut],
            self.decoded[cut],
            None if self.ahead is None else self.ahead[cut],
            None if self.hidden is None else self.hidden[cut],
            None if self.midway is None else self.midway[cut],
        )

    def multi_hot(self, experts: int) -> np.ndarray:
        """float32 [tokens, layers, experts]: 1 where the token used the expert."""
        used = np.zeros((*self.experts.shape[:2], experts + 1), np.float32)
        np.put_along_axis(used, self.experts.astype(np.int64) % (experts + 1), 1.0, axis=-1)
        return used[..., :experts]


def joined(pieces: Sequence[RoutingTrace]) -> RoutingTrace:
    """One trace from consecutive pieces of the same conversation; optional arrays only where every piece has them."""
    return RoutingTrace(
        pieces[0].conversation,
        np.concatenate([piece.token_ids for piece in pieces]),
        np.concatenate([piece.experts for piece in pieces]),
        np.concatenate([piece.weights for piece in pieces]),
        np.concatenate([piece.decoded for piece in pieces]),
        _joined_optional([piece.ahead for piece in pieces]),
        _joined_optional([piece.hidden for piece in pieces]),
        _joined_optional([piece.midway for piece in pieces]),
    )


def _joined_optional(arrays: Iterable[np.ndarray | None]) -> np.ndarray | None:
    present = list(arrays)
    return None if any(array is None for array in present) else np.concatenate([a for a in present if a is not None])
