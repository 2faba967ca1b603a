"""Logistic regression with very few weights: what puts probabilities right after training."""

from __future__ import annotations

import numpy as np

NEWTON_STEPS = 25
CONVERGED = 1e-7
SMALLEST = 1e-6  # probabilities are kept so far from 0 and 1 before their odds are taken


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow, in the dtype of x."""
    return 0.5 * (np.tanh(0.5 * x) + 1)


def logit(probabilities: np.ndarray) -> np.ndarray:
    """float32 log odds, of probabilities kept away from 0 and 1."""
    kept = np.clip(probabilities, SMALLEST, 1 - SMALLEST, dtype=np.float32)
    return np.log(kept) - np.log1p(-kept)


def fit_logistic(
    features: np.ndarray, targets: np.ndarray, centre: np.ndarray | None = None, strength: float = 1e-3
) -> np.ndarray:
    """float64 [features + 1]: weights, the constant last, that make sigmoid(features @ w + c) likeliest.

    features: float [examples, features]; targets: from 0 to 1. The weights are held to `centre` (default 0) as firmly
    as `strength` examples would; Newton's method, halving a step that makes matters worse.
    """
    x = np.concatenate([features, np.ones((len(features), 1))], axis=1, dtype=np.float64)
    y = targets.astype(np.float64)
    middle = np.zeros(x.shape[1]) if centre is None else np.asarray(centre, np.float64)

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float((np.logaddexp(0, z) - y * z).sum() + 0.5 * strength * ((w - middle) ** 2).sum())

    weights = np.zeros(x.shape[1])  # where curvature is largest; the centre may lie where there is none
    now = loss(weights)
    for _ in range(NEWTON_STEPS):
        p = sigmoid(x @ weights)
        gradient = x.T @ (p - y) + strength * (weights - middle)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + strength * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        while (after := loss(weights - step)) > now and np.abs(step).max() > CONVERGED:
            step /= 2
        if now - after <= CONVERGED * now:
            break
        weights, now = weights - step, after
    return weights
