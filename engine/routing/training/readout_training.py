"""Trains the readout: for each tapped layer a small network from the router's input to the next token's routing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from engine.errors import Cancelled
from engine.routing.logistic import fit_logistic, logit
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.readout import Tap, tap_layers
from engine.routing.scoring.replay import replay
from engine.routing.traces.trace import RoutingTrace

EXAMPLE_TOKENS = 2000  # that a tap's three mixing weights are fitted on
Stage = Callable[[int, int], None]


@dataclass(frozen=True)
class ReadoutSettings:
    """`units`: of the hidden layer; the rest as usual."""

    units: int = 512
    epochs: int = 6
    batch: int = 512
    rate: float = 2e-3
    weight_decay: float = 0.02
    dropout: float = 0.2
    seed: int = 0


class _TapNetwork(nn.Module):
    """[rows, width], standardised -> log odds [rows, layers, experts]."""

    def __init__(self, width: int, layers: int, experts: int, settings: ReadoutSettings) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(width, settings.units), nn.Linear(settings.units, layers * experts)
        self._shape, self._dropout = (layers, experts), settings.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.dropout(F.relu(self.inward(x)), self._dropout, self.training)
        return self.outward(inner).unflatten(-1, self._shape)


def fit_readout(
    predictor: RoutingPredictor,
    train: Sequence[RoutingTrace],
    validation: Sequence[RoutingTrace],
    settings: ReadoutSettings,
    on_progress: Stage | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> dict[int, Tap]:
    """A tap for each of `tap_layers`; none where traces lack `midway` or the predictor looks no further than one token.

    Networks learn from `train`; what weighs them against the predictor is fitted on `validation`, which neither knows.
    """
    told = [trace for trace in train if trace.midway is not None and len(trace) > 1]
    asked = [trace for trace in validation if trace.midway is not None and len(trace) > 1]
    if not told or not asked or predictor.horizon < 2:
        return {}
    shape, layers = predictor.shape, tap_layers(predictor.shape.layers)
    used = torch.from_numpy(np.concatenate([t.multi_hot(shape.experts)[1:].astype(bool) for t in told]))
    taps = {}
    for number, layer in enumerate(layers):
        if on_progress:
            on_progress(number, len(layers))
        seen = np.concatenate([_midway(trace)[:-1, number] for trace in told])
        taps[layer] = _fit_tap(seen, used, settings, must_stop)
    return _weigh(taps, predictor, asked)


def _fit_tap(seen: np.ndarray, used: torch.Tensor, settings: ReadoutSettings, must_stop: Callable[[], bool]) -> Tap:
    """Without its mixing weights. Listwise loss, as the predictor's own; see training_loss."""
    x = torch.from_numpy(seen)
    mean, scale = x.float().mean(0), 1 / x.float().std(0).clamp(min=1e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = _TapNetwork(x.shape[1], used.shape[1], used.shape[2], settings)
        adam = torch.optim.AdamW(network.parameters(), settings.rate, weight_decay=settings.weight_decay)
        steps = settings.epochs * -(-len(x) // settings.batch)
        pace = torch.optim.lr_scheduler.OneCycleLR(adam, settings.rate, total_steps=steps, pct_start=0.1)
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(x)).split(settings.batch):
                if must_stop():
                    raise Cancelled
                odds = network((x[rows].float() - mean) * scale)
                loss = -(F.log_softmax(odds, -1) * used[rows]).sum() / used[rows].sum().clamp(min=1)
                adam.zero_grad(set_to_none=True)
                loss.backward()
                adam.step()
                pace.step()
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    return Tap(
        weights["inward.weight"],
        weights["outward.weight"],
        mean.numpy(),
        scale.numpy(),
        weights["inward.bias"],
        weights["outward.bias"],
        np.array([0.0, 1.0, 0.0]),
    )


def _weigh(taps: dict[int, Tap], predictor: RoutingPredictor, traces: Sequence[RoutingTrace]) -> dict[int, Tap]:
    """Sets the mixing weights, and with them what the networks' log odds mean."""
    step = max(sum(map(len, traces)) // EXAMPLE_TOKENS, 1)
    before, used, seen = [], [], []
    for trace in traces:
        hot = trace.multi_hot(predictor.shape.experts)
        for one in replay(predictor, trace, prompts_too=True):
            if one.position % step == 0 and one.position + 1 < len(trace):
                before.append(logit(one.probabilities[1]).reshape(-1))
                used.append(hot[one.position + 1].reshape(-1))
                seen.append(_midway(trace)[one.position])
    stage1, targets, inputs = np.stack(before), np.stack(used).reshape(-1), np.stack(seen).astype(np.float32)
    weighed = {}
    for number, (layer, tap) in enumerate(taps.items()):
        inner = np.maximum((inputs[:, number] - tap.mean) * tap.scale @ tap.inward.T + tap.inward_bias, 0)
        odds = inner @ tap.outward.T + tap.outward_bias
        features = np.stack([stage1.reshape(-1), odds.reshape(-1)], axis=1)
        weighed[layer] = replace(tap, mix=fit_logistic(features, targets))
    return weighed


def _midway(trace: RoutingTrace) -> np.ndarray:
    assert trace.midway is not None
    return trace.midway
