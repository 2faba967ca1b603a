"""Trains what says how soon an expert is used again, from a trained predictor's memory of recorded conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from engine.routing.frequency import ExpertFrequency
from engine.routing.logistic import fit_logistic, logit
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.reuse import expected_by_frequency, reuse_targets
from engine.routing.scoring.replay import replay
from engine.routing.small_network import SmallNetwork
from engine.routing.traces.trace import RoutingTrace
from engine.routing.training.small_network_training import SmallNetworkSettings, best_weighed, fit_small_network

MOST_EXAMPLES = 100_000  # tokens learnt from
EXAMPLE_TOKENS = 2000  # that the mixing weights are fitted on
LAST_TOKENS = 8  # of a conversation are no examples: what would have been used after it is not known


class _Examples(NamedTuple):
    """memory: [tokens, width]; before: log odds of `expected_by_frequency`; targets: `reuse_targets`; float16 [tokens,
    layers * experts]."""

    memory: np.ndarray
    before: np.ndarray
    targets: np.ndarray


def fit_reuse(
    predictor: RoutingPredictor,
    train: Sequence[RoutingTrace],
    validation: Sequence[RoutingTrace],
    settings: SmallNetworkSettings,
    start: SmallNetwork | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> SmallNetwork | None:
    """None where the predictor keeps no memory, or looks no further than one token, or too little is recorded.

    The network learns from `train`; what weighs it against the frequency is fitted on `validation`. `start`: of what
    the predictor was before it learnt on; it stays where that says more of `validation`.
    """
    if predictor.memory is None or predictor.horizon < 2:
        return None
    known, asked = _examples(predictor, train, MOST_EXAMPLES), _examples(predictor, validation, EXAMPLE_TOKENS)
    if known is None or asked is None:
        return start
    of_before = float(fit_logistic(asked.before.reshape(-1, 1), asked.targets.reshape(-1))[0])
    before, targets = (torch.from_numpy(array) for array in (known.before, known.targets))

    def surprise(odds: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(odds + of_before * before[rows].float(), targets[rows].float())

    memory = torch.from_numpy(known.memory)
    network = fit_small_network(memory, predictor.shape.outputs, surprise, settings, must_stop)
    networks = [network] if start is None else [start, network]
    return best_weighed(networks, asked.memory.astype(np.float32), asked.before, asked.targets.astype(np.float32))


def _examples(predictor: RoutingPredictor, traces: Sequence[RoutingTrace], most: int) -> _Examples | None:
    """Of tokens evenly apart, at most so many; None where there are none."""
    step = -(-sum(map(len, traces)) // most)
    rows = [row for trace in traces for row in _of_conversation(predictor, trace, step)]
    if not rows:
        return None
    return _Examples(*(np.stack(column).astype(np.float16) for column in zip(*rows, strict=True)))


def _of_conversation(
    predictor: RoutingPredictor, trace: RoutingTrace, step: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    shape = predictor.shape
    used = trace.multi_hot(shape.experts)
    targets, frequency = reuse_targets(used), ExpertFrequency(shape)
    for one in replay(predictor, trace, prompts_too=True):
        if one.position % step == 0 and one.position + 2 + LAST_TOKENS < len(trace):
            assert predictor.memory is not None
            before = logit(expected_by_frequency(frequency.values))
            yield predictor.memory.copy(), before.reshape(-1), targets[one.position + 2].reshape(-1)
        frequency.count(used[one.position])
