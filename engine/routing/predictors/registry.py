"""Predictors by the names that commands use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InvalidSetting, PredictorUnusable
from engine.routing.predictors.baselines import NoPrediction, Oracle, PreviousToken
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.predictors.token_table import fit_token_table
from engine.routing.predictors.weights_file import StoredPredictor, read_predictor
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace

BASELINE_NAMES = ("none", "previous", "table", "oracle")
DEFAULT_HORIZON = 3


@dataclass(frozen=True)
class PredictorSources:
    """What predictors are made from; each needs only some of it.

    known: conversations that tables are fitted on; asked: those the oracle replays, in the order they will begin;
    model: fingerprint that a trained predictor must have been trained for, None for any.
    """

    shape: RoutingShape
    known: Sequence[RoutingTrace] = ()
    asked: Sequence[RoutingTrace] = ()
    model: str | None = None
    horizon: int = DEFAULT_HORIZON


def make_predictor(name: str, sources: PredictorSources) -> RoutingPredictor:
    """A fresh predictor: one of BASELINE_NAMES, or the file of a trained one.

    Raises InvalidSetting for an unknown name and PredictorUnusable for a file that will not do.
    """
    makers: dict[str, Callable[[], RoutingPredictor]] = {
        "none": lambda: NoPrediction(sources.shape, sources.horizon),
        "previous": lambda: PreviousToken(sources.shape, sources.horizon),
        "table": lambda: fit_token_table(sources.shape, sources.known, sources.horizon),
        "oracle": lambda: Oracle(sources.shape, sources.asked, sources.horizon),
    }
    if name in makers:
        return makers[name]()
    if not Path(name).exists():
        raise InvalidSetting(
            f"There is no predictor called {name!r}, and no such file.",
            f"Choose one of {', '.join(BASELINE_NAMES)}, or a file that `train-predictor` wrote.",
        )
    return load_predictor(Path(name), sources.model)


def load_predictor(file: Path, model: str | None = None) -> RoutingPredictor:
    """The trained predictor in `file`. Raises PredictorUnusable when it is not one, or not for `model`."""
    return predictor_of(read_predictor(file, model))


def predictor_of(stored: StoredPredictor) -> RoutingPredictor:
    """What can read the arrays, which their `kind` says."""
    from engine.routing.predictors import recurrent

    if stored.kind == recurrent.KIND:
        return recurrent.RecurrentPredictor(stored)
    from engine.routing.predictors import token_transformer  # brings in transformers' T5: seconds

    if stored.kind == token_transformer.KIND:
        return token_transformer.TokenTransformerPredictor(stored)
    raise PredictorUnusable(
        f"This program does not know predictors of kind {stored.kind!r}.", "Train one with `train-predictor`."
    )
