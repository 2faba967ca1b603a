"""Reads a token of each of several chats: all in one pass, or chat after chat, whichever is quicker here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch

from engine.cache.expert_cache import ExpertCache
from engine.generation.joint_choice import JointChoice
from engine.generation.sequence import TokenSequence
from engine.model.joint_step import JointStep

Outcome = torch.Tensor | BaseException
"""fp32 logits [vocab], or why there are none."""


class JointReading:
    """`joint` reads a token of each chat in one pass where `choice` says so, else chat after chat; None: it cannot."""

    def __init__(self, joint: JointStep | None, experts: ExpertCache, choice: JointChoice) -> None:
        self._joint, self._experts = joint, experts
        self.choice = choice

    def read(
        self,
        sequences: Sequence[TokenSequence],
        tokens: Sequence[int],
        alone: bool,
        expected: np.ndarray | None = None,
    ) -> list[Outcome]:
        """What came of each chat's token. One chat's failure is its own: a joint pass that fails is followed by passes
        apart. `alone`: the only chat there is decodes. `expected`: as ExpertCache.begin_joint_step takes it.
        """
        if self._joint is None or len(sequences) == 1:
            return _apart(sequences, tokens, alone)
        joint, began = self.choice.joint(len(sequences)), time.perf_counter()
        outcomes = self._together(self._joint, sequences, tokens, expected) if joint else _apart(sequences, tokens)
        self.choice.took(len(sequences), joint, time.perf_counter() - began)
        return outcomes

    def _together(
        self,
        joint: JointStep,
        sequences: Sequence[TokenSequence],
        tokens: Sequence[int],
        expected: np.ndarray | None,
    ) -> list[Outcome]:
        self._experts.begin_joint_step(expected)
        try:
            with ExitStack() as passes:
                for sequence, token in zip(sequences, tokens, strict=True):
                    passes.enter_context(sequence.reading([token], decoded=True))
                rows = joint([sequence.kv for sequence in sequences], tokens)
                _tell_hidden(joint, sequences)
        except Exception:  # whose it is shows apart; where memory is short, a pass of one chat needs less
            rows = None
        if rows is None:
            return _apart(sequences, tokens)
        self._experts.step_ended()
        return list(rows)


def _tell_hidden(joint: JointStep, sequences: Sequence[TokenSequence]) -> None:
    """What compiled kernels keep to themselves; of transformers' layers a hook tells."""
    hidden = getattr(joint, "last_hidden", None)
    if hidden is not None:
        for row, sequence in enumerate(sequences):
            sequence.tell_hidden(hidden[row : row + 1])


def _apart(sequences: Sequence[TokenSequence], tokens: Sequence[int], alone: bool = False) -> list[Outcome]:
    return [_step(sequence, token, alone) for sequence, token in zip(sequences, tokens, strict=True)]


def _step(sequence: TokenSequence, token: int, alone: bool) -> Outcome:
    try:
        return sequence.step(token, alone).clone()
    except BaseException as error:  # handed to whom it concerns
        return error
