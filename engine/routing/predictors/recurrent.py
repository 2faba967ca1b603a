"""The recurrent predictor at work: the trained GRU one token at a time, in numpy and the compiled kernels.

The names of the arrays are those of the file that `export` makes; `recurrent_network.py` says what they compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from engine.model import kernels
from engine.routing.logistic import sigmoid
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.predictors.recurrent_network import RecurrentNetwork, RecurrentSizes
from engine.routing.predictors.routing_input import USED, sparse_input
from engine.routing.predictors.stored_matrix import Int8Rows, to_int8
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.traces.trace import RoutingTrace

KIND = "recurrent"
MATRICES = ("tokens", "token_input", "routing_input", "hidden_input", "recurrence", "mix", "this", "later")
HEADS = ("mix", "this", "later")
READ_TOKENS = 256  # of a long prompt only so many are read: training windows are shorter than that


class RecurrentPredictor(RoutingPredictor):
    """Costs five products of a matrix and a vector for `predict`, in two compiled calls, and one for `observed`."""

    def __init__(self, stored: StoredPredictor) -> None:
        sizes, arrays = RecurrentSizes(**stored.sizes), stored.arrays
        super().__init__(stored.shape, sizes.horizon)
        self.stored = stored
        rows = {name: Int8Rows(arrays[name], arrays[f"{name}_scales"]) for name in MATRICES}
        self._tokens = rows["tokens"]
        biases = {name: arrays[f"{name}_bias"] for name in ("input", "recurrence", "mix", "this", "later")}
        self._nothing_entered, self._no_hidden = biases["input"], np.empty(0, np.float32)
        state, token = sizes.state_width, sizes.token_width
        self._with_token = np.zeros(state + token, np.float32)
        self._state = self._with_token[:state]
        self._token = self._with_token[state:]
        self._pending = self._nothing_entered.copy()
        self._out = self._empty()
        make = _CompiledStep if kernels.available() else _NumpyStep
        hidden_mean = arrays["hidden_mean"].astype(np.float32)
        self._step = make(rows, biases, arrays["calibration"].astype(np.float32), hidden_mean)
        self._warm_up()

    @property
    def memory(self) -> np.ndarray:
        """The state, and the embedding of the token it has read last."""
        return self._with_token

    def begin(self) -> None:
        self._state[:] = 0
        self._pending[:] = self._nothing_entered

    def read(self, rows: RoutingTrace) -> None:
        rows = rows.rows(max(len(rows) - READ_TOKENS, 0), len(rows))
        for position, token in enumerate(rows.token_ids.tolist()):
            self._advance(token)
            hidden = None if rows.hidden is None else rows.hidden[position]
            self.observed(rows.experts[position], rows.weights[position], hidden)

    def predict(self, token_id: int) -> np.ndarray:
        self._advance(token_id)
        self._step.foretell(self._with_token, self._out.reshape(self.horizon, -1))
        return self._out

    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        seen = self._no_hidden if hidden is None else hidden.astype(np.float32, copy=False)
        self._step.absorb(experts, weights, seen, self._pending)

    def _warm_up(self) -> None:
        """Has the kernels compiled before the first token asks for them."""
        self.begin()
        self.predict(0)
        nothing = np.zeros((self.shape.layers, self.shape.top_k))
        self.observed(nothing.astype(np.int16), nothing, None)
        self.begin()

    def _advance(self, token_id: int) -> None:
        np.multiply(self._tokens.values[token_id], self._tokens.scales[token_id], out=self._token)
        self._step.advance(self._token, self._pending, self._state)


class _NumpyStep:
    """What `_CompiledStep` computes, where no kernels run."""

    def __init__(
        self,
        rows: Mapping[str, Int8Rows],
        biases: Mapping[str, np.ndarray],
        calibration: np.ndarray,
        hidden_mean: np.ndarray,
    ) -> None:
        self._matrices = {name: matrix.widened() for name, matrix in rows.items() if name != "tokens"}
        self._biases, self._calibration, self._hidden_mean = biases, calibration, hidden_mean

    def absorb(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray, pending: np.ndarray) -> None:
        places, shares = sparse_input(experts, weights, len(self._matrices["routing_input"]) // len(experts))
        pending[:] = self._biases["input"] + shares @ self._matrices["routing_input"][places]
        if len(self._hidden_mean) and len(hidden):
            pending += self._matrices["hidden_input"] @ (hidden - self._hidden_mean)

    def advance(self, token: np.ndarray, pending: np.ndarray, state: np.ndarray) -> None:
        width, matrices = len(state), self._matrices
        entering = matrices["token_input"] @ token + pending
        staying = matrices["recurrence"] @ state + self._biases["recurrence"]
        gates = sigmoid(entering[: 2 * width] + staying[: 2 * width])
        reset, update = gates[:width], gates[width:]
        fresh = np.tanh(entering[2 * width :] + reset * staying[2 * width :])
        state += (1 - update) * (fresh - state)

    def foretell(self, with_token: np.ndarray, out: np.ndarray) -> None:
        matrices, biases = self._matrices, self._biases
        mixed = np.maximum(matrices["mix"] @ with_token + biases["mix"], 0)
        this, later = mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
        token = with_token[len(with_token) - (matrices["this"].shape[1] - len(this)) :]
        out[0] = matrices["this"] @ np.concatenate([this, token]) + biases["this"]
        out[1:] = (matrices["later"] @ later + biases["later"]).reshape(len(out) - 1, -1)
        out[:] = sigmoid(out * self._calibration[:, :1] + self._calibration[:, 1:])


class _CompiledStep:
    """The products and gates of a step."""

    def __init__(
        self,
        rows: Mapping[str, Int8Rows],
        biases: Mapping[str, np.ndarray],
        calibration: np.ndarray,
        hidden_mean: np.ndarray,
    ) -> None:
        from engine.model.kernels.recurrent import absorb, advance, foretell

        stored = {name: (matrix.values, matrix.scales) for name, matrix in rows.items()}
        self._absorb, self._advance, self._foretell = absorb, advance, foretell
        self._routing_input, self._hidden_width = stored["routing_input"], len(hidden_mean)
        self._entering = hidden_mean, stored["hidden_input"], biases["input"], np.empty_like(hidden_mean)
        self._token_input, self._recurrence = stored["token_input"], stored["recurrence"]
        self._recurrence_bias = biases["recurrence"]
        self._gates = np.empty_like(biases["recurrence"]), np.empty_like(biases["recurrence"])
        heads = (stored[name] if part == "rows" else biases[name] for name in HEADS for part in ("rows", "bias"))
        self._heads = (
            *heads,
            calibration,
            np.empty_like(biases["mix"]),
            np.empty(rows["this"].values.shape[1], np.float32),
        )

    def absorb(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray, pending: np.ndarray) -> None:
        """`pending` becomes what a token's routing and its residual stream, if any, add to the next step."""
        kernels.use_torch_threads()
        seen = hidden if self._hidden_width else hidden[:0]
        told = experts.astype(np.int16, copy=False), weights.astype(np.float32, copy=False), np.float32(USED)
        self._absorb(*told, self._routing_input, seen, *self._entering, pending)

    def advance(self, token: np.ndarray, pending: np.ndarray, state: np.ndarray) -> None:
        """`state` reads `token` and what else is `pending`, in place."""
        kernels.use_torch_threads()
        weights = (self._token_input, pending, self._recurrence, self._recurrence_bias)
        self._advance(token, *weights, *self._gates, state)

    def foretell(self, with_token: np.ndarray, out: np.ndarray) -> None:
        """Probabilities float32 [horizon, outputs], from the state with the token that it has read."""
        kernels.use_torch_threads()
        self._foretell(with_token, *self._heads, out)


def export(
    network: RecurrentNetwork, calibration: np.ndarray, model: str, history: Mapping[str, Any] | None = None
) -> StoredPredictor:
    """What a file holds: MATRICES in int8 with a scale a row, the model's share of the token embedding folded in.

    calibration: float [horizon, 2], slope and offset of each row's log odds.
    """
    shape, sizes = network.shape, network.sizes
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    with torch.no_grad():
        tokens = network.embed(torch.arange(shape.vocabulary)).numpy()
    inputs, routing_end = weights["gru.weight_ih_l0"], sizes.token_width + shape.outputs
    matrices = {
        "tokens": tokens,
        "token_input": inputs[:, : sizes.token_width],
        "routing_input": inputs[:, sizes.token_width : routing_end].T,
        "hidden_input": inputs[:, routing_end:] * weights["hidden_scale"],
        "recurrence": weights["gru.weight_hh_l0"],
        "mix": weights["mix.weight"],
        "this": weights["this.weight"],
        "later": weights["later.weight"],
    }
    vectors = {
        "hidden_mean": weights["hidden_mean"],
        "input_bias": weights["gru.bias_ih_l0"],
        "recurrence_bias": weights["gru.bias_hh_l0"],
        "mix_bias": weights["mix.bias"],
        "this_bias": weights["this.bias"],
        "later_bias": weights["later.bias"],
        "calibration": calibration,
    }
    arrays = {name: vector.astype(np.float32) for name, vector in vectors.items()}
    for name in MATRICES:
        rounded = to_int8(matrices[name])
        arrays |= {name: rounded.values, f"{name}_scales": rounded.scales}
    return StoredPredictor(KIND, model, shape, sizes.to_dict(), arrays, history or {})


def network_of(stored: StoredPredictor) -> RecurrentNetwork:
    """The network that `export` stored, to learn on: its weights as eight bits keep them, the embedding whole."""
    sizes, arrays = RecurrentSizes(**stored.sizes), stored.arrays
    network = RecurrentNetwork(stored.shape, sizes)
    matrices = {name: torch.from_numpy(Int8Rows(arrays[name], arrays[f"{name}_scales"]).widened()) for name in MATRICES}
    biases = {
        name: torch.from_numpy(arrays[f"{name}_bias"]) for name in ("input", "recurrence", "mix", "this", "later")
    }
    inputs = [matrices["token_input"], matrices["routing_input"].T, matrices["hidden_input"]]
    network.load_state_dict(
        {
            "token.weight": matrices["tokens"],
            "hidden_mean": torch.from_numpy(arrays["hidden_mean"]),
            "hidden_scale": torch.ones(sizes.hidden_width),
            "gru.weight_ih_l0": torch.cat(inputs, dim=1),
            "gru.weight_hh_l0": matrices["recurrence"],
            "gru.bias_ih_l0": biases["input"],
            "gru.bias_hh_l0": biases["recurrence"],
            **{f"{name}.weight": matrices[name] for name in ("mix", "this", "later")},
            **{f"{name}.bias": biases[name] for name in ("mix", "this", "later")},
        }
    )
    return network.eval()
