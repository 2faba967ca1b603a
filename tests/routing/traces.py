"""Made-up traces, and what it means for two to be the same."""

from __future__ import annotations

import numpy as np

from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import NOBODY, RoutingTrace
from engine.routing.traces.traced_model import TracedModel

LAYERS, EXPERTS, TOP_K = 3, 8, 2
MODEL = TracedModel("tiny", "f00d", RoutingShape(LAYERS, EXPERTS, TOP_K, 50_000))


def made_up(tokens: int, seed: int = 0, conversation: str = "c", experts: int = EXPERTS, **optional) -> RoutingTrace:
    """A trace of random rows; `optional` names of optional arrays with their trailing shapes."""
    random = np.random.default_rng(seed)
    shape = (tokens, LAYERS, TOP_K)
    chosen = random.random((tokens, LAYERS, experts)).argsort(-1)[..., :TOP_K].astype(np.int16)
    chosen[random.random((tokens, LAYERS)) < 0.1, 1:] = NOBODY
    return RoutingTrace(
        conversation,
        random.integers(0, 50_000, tokens).astype(np.int32),
        chosen,
        random.random(shape).astype(np.float16),
        random.random(tokens) < 0.5,
        **{name: random.random((tokens, *shape)).astype(np.float16) for name, shape in optional.items()},
    )


def assert_same_rows(one: RoutingTrace, other: RoutingTrace) -> None:
    """All arrays, their dtypes too, and the conversation."""
    assert one.conversation == other.conversation
    for name in ("token_ids", "experts", "weights", "decoded", "ahead", "hidden"):
        left, right = getattr(one, name), getattr(other, name)
        if left is None or right is None:
            assert left is right, name
        else:
            assert left.dtype == right.dtype, name
            np.testing.assert_array_equal(left, right, err_msg=name)
