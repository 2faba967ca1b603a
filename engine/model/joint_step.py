"""Which of the two ways to read a token of each of several chats in one pass a model gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from engine.model.experts import ExpertProvider
from engine.model.fast_support import unsupported_reason
from engine.model.kv_cache import KvCache
from engine.model.ragged_step import RaggedStep, supports

JointStep = Callable[[Sequence[KvCache], Sequence[int]], torch.Tensor]
"""fp32 logits [chats, vocab] after a token of each chat. What it raises leaves caches to be cropped."""


def joint_step(model: Any, kv: KvCache, provider: ExpertProvider) -> JointStep | None:
    """By compiled kernels where they know the model, else through transformers' layers; None where neither can.

    `kv`: a chat of this model's.
    """
    if unsupported_reason(model) is None:
        from engine.model.fast_joint import FastJoint

        if FastJoint.supports(model) is None:
            return FastJoint(model, provider)
    return RaggedStep(model) if supports(model, kv) is None else None
