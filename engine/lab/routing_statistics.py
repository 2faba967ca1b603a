"""What recorded routing looks like: is it spread, does it repeat, what would a cache make of it.

Routing of a conversation is an integer array [tokens, layers, top k]: the experts each token chose in each layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from engine.cache.policy_choice import PLAIN_POLICIES, make_policy
from engine.lab.belady import Step, replay, replay_belady

CACHE_SHARES = (0.15, 0.25, 0.35, 0.45)
Routing = np.ndarray


def expert_counts(conversations: Sequence[Routing], experts: int) -> np.ndarray:
    """How often each expert was chosen: [layers, experts]."""
    layers = conversations[0].shape[1]
    chosen = np.concatenate([routing.swapaxes(0, 1).reshape(layers, -1) for routing in conversations], axis=1)
    return np.stack([np.bincount(row, minlength=experts) for row in chosen])


def max_over_mean_load(counts: np.ndarray) -> float:
    """The busiest expert's load over the mean load of its layer, in the worst layer."""
    return float((counts.max(1) / counts.mean(1)).max())


def entropy_per_layer(counts: np.ndarray) -> list[float]:
    """Of the experts' shares of a layer's load, over its greatest possible value: 1 where all are equally busy."""
    shares = counts / counts.sum(1, keepdims=True)
    bits = -np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0).sum(1)
    return [float(value) for value in bits / np.log(counts.shape[1])]


def adjacent_overlap(conversations: Sequence[Routing]) -> float:
    """Share of a token's experts that the token before it used too, over all layers."""
    repeated = [
        (later[..., :, None] == earlier[..., None, :]).any(-1)
        for earlier, later in ((routing[:-1], routing[1:]) for routing in conversations)
    ]
    return float(np.concatenate([part.reshape(-1) for part in repeated]).mean())


def cache_hit_rates(
    conversations: Sequence[Routing], experts: int, shares: Sequence[float] = CACHE_SHARES
) -> dict[str, dict[str, float]]:
    """Hit rate by policy (and "belady", the bound) and share of the experts in memory, decoding token by token.

    One conversation follows the other; the cache begins empty.
    """
    steps = [step for routing in conversations for step in _steps(routing)]
    layers = conversations[0].shape[1]
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    for share in shares:
        slots, label = round(share * layers * experts), f"{share:.0%}"
        for name in PLAIN_POLICIES:
            policy = make_policy(name, layers)
            policy.resized(slots)
            rates[name][label] = replay(steps, slots, policy).hit_rate
        rates["belady"][label] = replay_belady(steps, slots).hit_rate
    return dict(rates)


def token_table_recall(
    known: Sequence[tuple[Sequence[int], Routing]], asked: Sequence[tuple[Sequence[int], Routing]], experts: int
) -> float:
    """Share of the experts in `asked` that a table by token id, fitted on `known`, names.

    The table holds each token's most frequent experts in each layer, as many as a token uses; for a token never
    seen, the layer's busiest. A high recall means that routing hardly looks at the context.
    """
    tables: dict[int, np.ndarray] = {}
    _, layers, top_k = known[0][1].shape
    overall = np.zeros((layers, experts), dtype=np.int64)
    rows = np.arange(layers)[:, None]
    for ids, routing in known:
        for token, chosen in zip(ids, routing, strict=True):
            tables.setdefault(token, np.zeros_like(overall))[rows, chosen] += 1
            overall[rows, chosen] += 1
    guesses = {token: _largest(counts, top_k) for token, counts in tables.items()}
    unseen = _largest(overall, top_k)
    found = total = 0
    for ids, routing in asked:
        for token, chosen in zip(ids, routing, strict=True):
            guess = guesses.get(token, unseen)
            found += int((chosen[:, :, None] == guess[:, None, :]).any(-1).sum())
            total += chosen.size
    return found / total


def _largest(counts: np.ndarray, number: int) -> np.ndarray:
    return np.argsort(-counts, axis=1, kind="stable")[:, :number]


def _steps(routing: Routing) -> list[Step]:
    return [[(layer, [int(e) for e in experts]) for layer, experts in enumerate(token)] for token in routing]
