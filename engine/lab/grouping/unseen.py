"""Recorded conversations that no predictor was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.errors import InvalidSetting
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_store import TraceStore
from engine.routing.traces.traced_model import TracedModel
from engine.routing.training.split import part_of


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
