"""The recurrent predictor for several chats at once: their states beside each other, its weights shared.

A chat costs `state_width` and as much again for its next input; a step of all chats is five matrix products, where
chat after chat would read every weight once for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.routing.logistic import sigmoid
from engine.routing.predictors.recurrent import KIND
from engine.routing.predictors.recurrent_network import RecurrentSizes
from engine.routing.predictors.routing_input import dense_input
from engine.routing.predictors.stored_matrix import Int8Rows
from engine.routing.predictors.weights_file import StoredPredictor


def can_batch(stored: StoredPredictor) -> bool:
    """Whether `RecurrentBatch` can read the arrays."""
    return stored.kind == KIND


class RecurrentBatch:
    """Says for each chat what its next token uses; only of that token, not of those after it.

    Chats are places, 0 to `places` - 1. Of a chat: `begin`, then for each token `predict` and `observed`.
    """

    def __init__(self, stored: StoredPredictor, places: int) -> None:
        sizes, arrays = RecurrentSizes(**stored.sizes), stored.arrays
        self.shape = stored.shape
        self._tokens = Int8Rows(arrays["tokens"], arrays["tokens_scales"])
        self._token_input = _widened(stored, "token_input").T
        self._routing_input = _widened(stored, "routing_input")
        self._hidden_input = _widened(stored, "hidden_input").T if sizes.hidden_width else None
        self._hidden_mean = arrays["hidden_mean"]
        self._recurrence = _widened(stored, "recurrence").T
        self._mix = _widened(stored, "mix")[: sizes.head_width].T  # the half that is about this token
        self._this = _widened(stored, "this").T
        self._biases = {name: arrays[f"{name}_bias"] for name in ("input", "recurrence", "mix", "this")}
        self._slope, self._offset = (float(number) for number in arrays["calibration"][0])
        self._states = np.zeros((places, sizes.state_width), np.float32)
        self._pending = np.tile(self._biases["input"], (places, 1)).astype(np.float32)

    def begin(self, place: int) -> None:
        """A new chat takes the place."""
        self._states[place] = 0
        self._pending[place] = self._biases["input"]

    def predict(self, places: Sequence[int], token_ids: Sequence[int]) -> np.ndarray:
        """float32 [chats, layers, experts]: probability that the chat's token uses the expert. Once for each token."""
        tokens = self._tokens.values[token_ids] * self._tokens.scales[token_ids, None]
        state = self._advanced(places, tokens)
        mixed = np.concatenate([state, tokens], axis=1) @ self._mix + self._biases["mix"][: self._mix.shape[1]]
        odds = np.concatenate([np.maximum(mixed, 0), tokens], axis=1) @ self._this + self._biases["this"]
        likely = sigmoid(odds * self._slope + self._offset)
        return likely.reshape(len(state), self.shape.layers, self.shape.experts)

    def observed(
        self, places: Sequence[int], experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None = None
    ) -> None:
        """The real routing of the tokens predicted last: integers and float [chats, layers, top k]; hidden: float
        [chats, width], their residual stream after the last layer, normalised, where it is at hand.
        """
        entering = dense_input(experts, weights, self.shape.experts) @ self._routing_input
        entering += self._biases["input"]
        if hidden is not None and self._hidden_input is not None:
            entering += (hidden.astype(np.float32) - self._hidden_mean) @ self._hidden_input
        self._pending[places] = entering

    def _advanced(self, places: Sequence[int], tokens: np.ndarray) -> np.ndarray:
        state, width = self._states[places], self._states.shape[1]
        entering = tokens @ self._token_input + self._pending[places]
        staying = state @ self._recurrence + self._biases["recurrence"]
        gates = sigmoid(entering[:, : 2 * width] + staying[:, : 2 * width])
        reset, update = gates[:, :width], gates[:, width:]
        fresh = np.tanh(entering[:, 2 * width :] + reset * staying[:, 2 * width :])
        state += (1 - update) * (fresh - state)
        self._states[places] = state
        return state


def _widened(stored: StoredPredictor, name: str) -> np.ndarray:
    return Int8Rows(stored.arrays[name], stored.arrays[f"{name}_scales"]).widened().astype(np.float32)
