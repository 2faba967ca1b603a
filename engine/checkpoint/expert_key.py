"""The name of an expert: which MoE layer (in forward order, from 0), which expert of it."""

from __future__ import annotations

from typing import NamedTuple


class ExpertKey(NamedTuple):
    """`layer` is the ordinal among the MoE layers, not the transformer layer's number."""

    layer: int
    expert: int
