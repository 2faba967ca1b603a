"""Which model a trace is of: routing of other weights means nothing to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.checkpoint.storage_plan import parameters_in_storage_dtype
from engine.routing.shape import RoutingShape

SAMPLED = 64  # elements of each weight, evenly spread: enough to tell two trainings apart


@dataclass(frozen=True)
class TracedModel:
    """`fingerprint` is the same for the same dense weights; `shape` has the largest of any layer."""

    name: str
    fingerprint: str
    shape: RoutingShape


def identify(model: Any, name: str, experts_per_layer: Sequence[int], top_k: int) -> TracedModel:
    """The identity of a loaded model, from its dense weights (routers among them); reads no expert.

    The same on a card, where weights are parameters in their own dtype that the processor keeps as they are stored.
    """
    digest = hashlib.blake2b(digest_size=16)
    stored = parameters_in_storage_dtype(model)
    left_out = stored | {name.removesuffix("weight") + "bias" for name in stored}
    for parameter_name, parameter in sorted(model.named_parameters()):
        if parameter_name not in left_out:
            digest.update(f"{parameter_name}{tuple(parameter.shape)}{torch.float32}".encode())
            digest.update(_sample(parameter.detach()).numpy().tobytes())
    vocabulary = model.config.get_text_config().vocab_size
    shape = RoutingShape(len(experts_per_layer), max(experts_per_layer), top_k, vocabulary)
    return TracedModel(name, digest.hexdigest(), shape)


def _sample(weight: Any) -> Any:
    flat = weight.reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)].float().cpu()
