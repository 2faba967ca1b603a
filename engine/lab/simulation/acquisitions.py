"""What decoding a trace asks the cache for, and in which passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from engine.checkpoint.expert_key import ExpertKey
from engine.routing.traces.trace import NOBODY, RoutingTrace


def passes(trace: RoutingTrace) -> Iterator[tuple[int, int]]:
    """[start, stop) of each forward pass: a prompt at once, decoded tokens one by one."""
    borders = (np.flatnonzero(np.diff(trace.decoded)) + 1).tolist()
    for start, stop in zip([0, *borders], [*borders, len(trace)], strict=True):
        if len(trace) and trace.decoded[start]:
            yield from ((row, row + 1) for row in range(start, stop))
        elif stop > start:
            yield start, stop


def distinct(chosen: np.ndarray) -> list[int]:
    """In the order of their first appearance, as the engine asks for them."""
    return list(dict.fromkeys(chosen[chosen != NOBODY].tolist()))


def acquisitions(traces: Iterable[RoutingTrace]) -> Iterator[list[ExpertKey]]:
    """What a simulator asks the cache for, in order: a layer's experts at a time."""
    for trace in traces:
        for start, stop in passes(trace):
            for layer in range(trace.layers):
                yield [ExpertKey(layer, expert) for expert in distinct(trace.experts[start:stop, layer])]
