"""Conversations whose routing is known: each token has experts of its own, and a hidden topic changes some layers.

The topic is drawn once for a conversation. A third of the layers listen to the token alone, a third to token and
topic, a third to token and the token before: a table by token id can be right in the first third only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.routing.readout import tap_layers
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_store import TraceStore
from engine.routing.traces.traced_model import TracedModel

SHAPE = RoutingShape(layers=6, experts=8, top_k=2, vocabulary=24)
TOPICS = 2
WIDTH = 5


def conversations(
    count: int, tokens: int = 48, seed: int = 0, shape: RoutingShape = SHAPE, distances: int = 0
) -> list[RoutingTrace]:
    """`distances` > 0 adds `ahead`: the next layers' real routing, the further the more blurred by noise; and `midway`,
    which says nothing.
    """
    world = np.random.default_rng(1)  # the same in every data set
    first_of = np.stack([_two_of(world, shape.experts, shape.vocabulary) for _ in range(shape.layers)])
    by_topic = np.stack([_two_of(world, shape.experts, shape.vocabulary * TOPICS) for _ in range(shape.layers)])
    by_pair = np.stack([_two_of(world, shape.experts, shape.vocabulary * shape.vocabulary) for _ in range(2)])
    chance = np.random.default_rng(seed + 2)
    return [
        _conversation(f"chat {seed}-{n}", tokens, shape, (first_of, by_topic, by_pair), chance, distances)
        for n in range(count)
    ]


def elsewhere(traces: Iterable[RoutingTrace], shape: RoutingShape = SHAPE) -> tuple[RoutingTrace, ...]:
    """The same in a world where every expert does its neighbour's work: who learnt there knows nothing here."""
    return tuple(replace(trace, experts=(trace.experts + 1) % shape.experts) for trace in traces)


def write_traces(path: Path, traces: Iterable[RoutingTrace], model: str = "model one") -> Path:
    """A trace file of a model with that fingerprint."""
    with TraceStore(path, TracedModel(model, model, SHAPE)) as store:
        for trace in traces:
            store.append(0, trace)
    return path


def _two_of(random: np.random.Generator, experts: int, rows: int) -> np.ndarray:
    return np.argsort(random.random((rows, experts)), axis=1)[:, :2]


def _conversation(name, tokens, shape, world, chance, distances) -> RoutingTrace:
    alone, by_topic, by_pair = world
    topic = int(chance.integers(TOPICS))
    ids = chance.integers(shape.vocabulary, size=tokens)
    before = np.concatenate([[0], ids[:-1]]) % 3
    experts = np.empty((tokens, shape.layers, 2), np.int16)
    for layer in range(shape.layers):
        if layer % 3 == 0:
            experts[:, layer] = alone[layer, ids]
        elif layer % 3 == 1:
            experts[:, layer] = by_topic[layer, ids * TOPICS + topic]
        else:
            experts[:, layer] = by_pair[layer % 2, ids * 3 + before]
    first = chance.uniform(0.5, 1, (tokens, shape.layers, 1))
    weights = np.concatenate([first, 1 - first], axis=-1).astype(np.float16)
    decoded = np.arange(tokens) >= tokens // 4
    hidden = chance.normal(size=(tokens, WIDTH)).astype(np.float16)
    ahead = _ahead(experts, shape, distances, chance) if distances else None
    midway = np.zeros((tokens, len(tap_layers(shape.layers)), WIDTH), np.float16) if distances else None
    return RoutingTrace(name, ids.astype(np.int32), experts, weights, decoded, ahead, hidden, midway)


def _ahead(experts, shape, distances, chance) -> np.ndarray:
    used = np.zeros((*experts.shape[:2], shape.experts))
    np.put_along_axis(used, experts.astype(np.int64), 1.0, axis=-1)
    ahead = np.zeros((len(experts), shape.layers, distances, shape.experts), np.float16)
    for distance in range(1, distances + 1):
        later = used[:, distance:] * 3 + chance.normal(size=used[:, distance:].shape) * distance
        shares = np.exp(later) / np.exp(later).sum(-1, keepdims=True)
        ahead[:, : shape.layers - distance, distance - 1] = shares
    return ahead
