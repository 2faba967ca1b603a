"""The real-time correction: compiled, it is the blend of stage 1 with the routers ahead."""

from __future__ import annotations

import numpy as np
import pytest

from engine.model import kernels
from engine.routing.blend import Blend, routers_alone
from engine.routing.correction import RouterCorrection
from engine.routing.lookahead import RouterLookahead
from tests.model.tiny_moe import tiny_moe

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="no compiled kernels here")


@needs_kernels
@pytest.mark.parametrize("distances", [1, 2, 3])
def test_compiled_it_is_the_blend_of_both_sources(distances):
    lookahead, chance = RouterLookahead(tiny_moe("qwen3_moe")), np.random.default_rng(0)
    layers, experts = lookahead.layers, lookahead.experts
    blend = Blend(chance.normal(size=(distances, layers, 3)))
    correction = RouterCorrection(lookahead, blend)
    stage1 = chance.random((layers, experts), np.float32)
    stage1[1, 0], stage1[1, 1] = 0, 1  # certainties
    for layer in range(layers):
        x = chance.normal(size=(1, lookahead.width)).astype(np.float32)
        expected = blend(layer, stage1, lookahead.probabilities(layer, x, distances)[0])
        assert len(expected) == min(distances, layers - 1 - layer)
        np.testing.assert_allclose(correction.ahead(layer, x, stage1), expected, rtol=0.05, atol=0.01)  # eight bits


def test_without_a_trained_predictor_the_routers_decide():
    lookahead, chance = RouterLookahead(tiny_moe("mixtral")), np.random.default_rng(1)
    correction = RouterCorrection(lookahead, routers_alone(lookahead.layers, top_k=2))
    x = chance.normal(size=(1, lookahead.width)).astype(np.float32)
    stage1 = np.zeros((lookahead.layers, lookahead.experts), np.float32)
    said = correction.ahead(0, x, stage1).copy()
    routers = lookahead.probabilities(0, x, 1)[0, 0]
    assert (np.argsort(said[0]) == np.argsort(routers)).all()
    assert said[0].max() > routers.max()
