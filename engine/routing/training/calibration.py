"""Makes a trained network's probabilities mean what they say: a cost gate multiplies them by seconds.

Platt scaling (1999): a slope and an offset for the log odds of each row, fitted on conversations it has not learnt.
"""

from __future__ import annotations

import numpy as np
import torch

from engine.routing.logistic import fit_logistic
from engine.routing.predictors.network import PredictorNetwork
from engine.routing.training.train import spread
from engine.routing.training.windows import Windows

BATCHES = 8
EXAMPLES = 200_000  # of each row; two numbers need no more


@torch.no_grad()
def fit_calibration(network: PredictorNetwork, validation: Windows) -> np.ndarray:
    """float64 [rows, 2]: p = sigmoid(slope * log odds + offset)."""
    network.eval()
    odds_of: list[list[np.ndarray]] = [[] for _ in range(validation.horizon)]
    used_of: list[list[np.ndarray]] = [[] for _ in range(validation.horizon)]
    for batch in spread(validation.in_order(), BATCHES):
        loaded = validation.load(batch)
        odds, tokens = network(loaded), loaded.inside.shape[1]
        for row in range(odds.shape[2]):
            counted = loaded.inside & loaded.known[:, row : row + tokens]
            odds_of[row].append(odds[:, :, row][counted].numpy().reshape(-1))
            used_of[row].append(loaded.used[:, row : row + tokens][counted].numpy().reshape(-1))
    return np.stack([_fit(np.concatenate(o), np.concatenate(u)) for o, u in zip(odds_of, used_of, strict=True)])


def _fit(odds: np.ndarray, used: np.ndarray) -> np.ndarray:
    if not len(odds):
        return np.array([1.0, 0.0])
    step = max(len(odds) // EXAMPLES, 1)
    return fit_logistic(odds[::step, None], used[::step], centre=np.array([1.0, 0.0]), strength=1.0)
