"""Recorded conversations cut into windows of tokens, and windows put into batches for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.routing.predictors.routing_input import dense_input
from engine.routing.traces.trace import RoutingTrace


@dataclass(frozen=True)
class Batch:
    """Windows of `tokens` positions, short ones padded.

    tokens: int64 [windows, tokens], with `inside`: bool, the same shape, False for padding; before: float32 [windows,
    tokens, layers * experts], the routing of the token before each; hidden: float32 [windows, tokens, width], the
    residual stream after it, with `has_hidden`: bool [windows, tokens]; used: float32 [windows, tokens + horizon - 1,
    layers, experts], with `known`: bool [windows, tokens + horizon - 1], False where the conversation is over; prompt:
    int64 [windows, prompt tokens], what came before the window, right-aligned, with `in_prompt`: bool, the same shape.
    """

    tokens: torch.Tensor
    inside: torch.Tensor
    before: torch.Tensor
    hidden: torch.Tensor
    has_hidden: torch.Tensor
    used: torch.Tensor
    known: torch.Tensor
    prompt: torch.Tensor
    in_prompt: torch.Tensor


@dataclass(frozen=True)
class Windows:
    """Cuts `traces` into windows of `tokens`; batches differ between epochs and are the same for a seed and epoch.

    hidden_width: 0 leaves the residual stream out; prompt: how many tokens before a window a batch has.
    """

    traces: Sequence[RoutingTrace]
    experts: int
    horizon: int
    tokens: int
    batch: int
    hidden_width: int = 0
    prompt: int = 0

    def epoch(self, seed: int, number: int) -> list[list[tuple[int, int]]]:
        """Batches of (trace, start), shuffled; starts are shifted by a random share of a window."""
        chance = np.random.default_rng((seed, number))
        return self._batches([int(chance.integers(self.tokens)) for _ in self.traces], chance)

    def in_order(self) -> list[list[tuple[int, int]]]:
        """Every position once, unshuffled: for measuring."""
        return self._batches([0] * len(self.traces), None)

    def load(self, batch: Sequence[tuple[int, int]]) -> Batch:
        """The batch's arrays."""
        layers = self.traces[0].layers
        ahead = self.tokens + self.horizon - 1
        tokens = np.zeros((len(batch), self.tokens), np.int64)
        inside = np.zeros((len(batch), self.tokens), bool)
        before = np.zeros((len(batch), self.tokens, layers * self.experts), np.float32)
        hidden = np.zeros((len(batch), self.tokens, self.hidden_width), np.float32)
        has_hidden = np.zeros((len(batch), self.tokens), bool)
        used = np.zeros((len(batch), ahead, layers, self.experts), np.float32)
        known = np.zeros((len(batch), ahead), bool)
        prompt = np.zeros((len(batch), self.prompt), np.int64)
        in_prompt = np.zeros((len(batch), self.prompt), bool)
        for row, (number, start) in enumerate(batch):
            trace = self.traces[number]
            begin = max(start, 0)
            rows, future = trace.rows(begin, start + self.tokens), trace.rows(begin, begin + ahead)
            tokens[row, : len(rows)], inside[row, : len(rows)] = rows.token_ids, True
            used[row, : len(future)] = future.multi_hot(self.experts)
            known[row, : len(future)] = True
            first = int(begin == 0)  # nothing comes before the conversation's first token
            earlier = trace.rows(begin - 1 + first, begin + len(rows) - 1)
            before[row, first : first + len(earlier)] = dense_input(earlier.experts, earlier.weights, self.experts)
            if self.hidden_width and earlier.hidden is not None:
                hidden[row, first : first + len(earlier)] = earlier.hidden
                has_hidden[row, first : first + len(earlier)] = True
            if self.prompt and begin:
                said = trace.token_ids[max(begin - self.prompt, 0) : begin]
                prompt[row, self.prompt - len(said) :], in_prompt[row, self.prompt - len(said) :] = said, True
        return Batch(
            *map(torch.from_numpy, (tokens, inside, before, hidden, has_hidden, used, known, prompt, in_prompt))
        )

    def _batches(self, shifts: Sequence[int], chance: np.random.Generator | None) -> list[list[tuple[int, int]]]:
        cuts = [
            (number, start)
            for number, (trace, shift) in enumerate(zip(self.traces, shifts, strict=True))
            for start in range(-shift, len(trace), self.tokens)
            if start + self.tokens > 0
        ]
        order = range(len(cuts)) if chance is None else chance.permutation(len(cuts))
        shuffled = [cuts[place] for place in order]
        return [shuffled[i : i + self.batch] for i in range(0, len(shuffled), self.batch)]
