"""Recorded conversations that no predictor was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from engine.checkpoint.catalog import resolve_model
from engine.checkpoint.expert_index import ExpertIndex
from engine.errors import InvalidSetting
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_store import TraceStore
from engine.routing.traces.traced_model import TracedModel
from engine.routing.training.split import part_of

OnProgress = Callable[[str, int, int], None]


def traces_of(
    files: Sequence[Path], model: str, most: int, least_tokens: int, seen_too: bool, on_progress: OnProgress
) -> tuple[TracedModel, list[RoutingTrace], int]:
    """`unseen_traces` of `model`, and the bytes of one of its experts. Raises EngineError, also for another model's."""
    index = ExpertIndex.from_checkpoint(resolve_model(model, on_progress))
    recorded, traces = unseen_traces(files, most, least_tokens, seen_too)
    if (recorded.shape.layers, recorded.shape.experts) != (len(index.experts_per_layer), max(index.experts_per_layer)):
        raise InvalidSetting("The routing was recorded with another model.", "Give that model with --model.")
    return recorded, traces, index.slot_bytes


def unseen_traces(
    files: Sequence[Path], most: int, least_tokens: int, seen_too: bool = False
) -> tuple[TracedModel, list[RoutingTrace]]:
    """Up to `most` conversations of `least_tokens` or more, without the optional arrays, and the model they are of.

    `seen_too`: also those that train predictors. Raises InvalidSetting, TraceStoreUnavailable.
    """
    models: list[TracedModel] = []
    found: list[RoutingTrace] = []
    for file in files:
        with TraceStore(file) as store:
            if store.model is None:
                raise InvalidSetting(
                    f"Nothing is recorded in {file}.", "Record with `trace --prompts FILE --out FILE`."
                )
            models.append(store.model)
            for conversation, tokens in store.tokens_by_conversation().items():
                wanted = tokens >= least_tokens and (seen_too or part_of(conversation) == "test")
                if wanted and len(found) < most and (trace := store.trace(conversation)) is not None:
                    found.append(replace(trace, ahead=None, hidden=None, midway=None))
    if not models:
        raise InvalidSetting("There are no traces to read.", "Name at least one file with --traces.")
    if any(model.fingerprint != models[0].fingerprint for model in models):
        raise InvalidSetting("The files were recorded with different models.", "Use one model's traces.")
    return models[0], found
