"""From files of traces to the file of a trained predictor: split, train, calibrate, blend, write, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.errors import InvalidSetting
from engine.routing.blend import ARRAY, fit_blend
from engine.routing.predictors import recurrent
from engine.routing.predictors.network import PredictorNetwork
from engine.routing.predictors.recurrent_network import RecurrentNetwork, RecurrentSizes
from engine.routing.predictors.registry import predictor_of
from engine.routing.predictors.token_start import start_from_tokens
from engine.routing.predictors.weights_file import StoredPredictor, write_predictor
from engine.routing.readout import readout_arrays, readout_of, stored_taps
from engine.routing.reuse import reuse_arrays, stored_reuse
from engine.routing.scoring.evaluation import evaluate
from engine.routing.scoring.evaluation_ahead import evaluate_ahead
from engine.routing.scoring.evaluation_readout import evaluate_readout
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_set import TraceSet
from engine.routing.training.calibration import fit_calibration
from engine.routing.training.readout_training import fit_readout
from engine.routing.training.reuse_training import fit_reuse
from engine.routing.training.small_network_training import SmallNetworkSettings
from engine.routing.training.split import Split, split_by_conversation
from engine.routing.training.train import Progress, TrainingSettings, TrainingState, train
from engine.routing.training.windows import Windows

KINDS = (recurrent.KIND, "token-transformer")
ENOUGH_TOKENS = 20_000  # residual streams that say how large each channel is


@dataclass(frozen=True)
class PredictorTraining:
    """What decides the predictor, besides the traces.

    sizes: of the recurrent network, `hidden_width` being set from the traces; use_hidden: False leaves the model's
    residual stream out though it was recorded; prompts_too: measure on prompts' tokens as well as on answers'; start: a
    predictor that learns on; clock: tells the seconds that `settings.minutes` limits.
    """

    kind: str = recurrent.KIND
    sizes: RecurrentSizes = field(default_factory=RecurrentSizes)
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    small_networks: SmallNetworkSettings = field(default_factory=SmallNetworkSettings)
    use_hidden: bool = True
    prompts_too: bool = False
    start: StoredPredictor | None = None
    clock: Callable[[], float] = time.monotonic


def train_predictor(
    recorded: TraceSet,
    out: Path,
    training: PredictorTraining,
    model_embedding: torch.Tensor | None = None,
    on_progress: Progress | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Writes `out` and returns how it was made and how good it is on conversations it never saw.

    A run that is left (Cancelled) goes on from the checkpoint beside `out`, which is removed in the end. Raises
    InvalidSetting for traces that cannot be split, an unknown kind, or an embedding of another vocabulary.
    """
    split = split_by_conversation(recorded.traces)
    network = make_network(recorded, split, training, model_embedding)
    known, chosen = (_windows(network, part, training.settings) for part in (split.train, split.validation))
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    has_learnt = training.start is not None
    state = train(
        network, known, chosen, training.settings, checkpoint, on_progress, must_stop, has_learnt, training.clock
    )
    _tell(on_progress, "Calibrating")
    history = _history(split, training, state)
    stored = _export(network, fit_calibration(network, chosen), recorded.model, history)
    if training.start is not None:  # what these traces may not tell anew
        stored = replace(stored, arrays={**training.start.arrays, **stored.arrays})
    predictor = predictor_of(stored)
    blend = fit_blend(predictor, split.validation)
    if blend is not None:
        stored = replace(stored, arrays={**stored.arrays, ARRAY: blend.coefficients})
    networks = training.small_networks
    learnt = {} if training.start is None else training.start.arrays
    told, parts = _told(on_progress), (split.train, split.validation)
    taps = fit_readout(predictor, *parts, networks, stored_taps(learnt, recorded.shape.layers), told, must_stop)
    _tell(on_progress, "Training what decides who leaves the cache")
    reuse = fit_reuse(predictor, *parts, networks, stored_reuse(learnt), must_stop)
    arrays = {**stored.arrays, **readout_arrays(taps), **(reuse_arrays(reuse) if reuse else {})}
    stored = replace(stored, arrays=arrays)
    write_predictor(out, stored)
    checkpoint.unlink(missing_ok=True)
    _tell(on_progress, "Measuring on unseen conversations")
    test = evaluate(predictor, split.test, prompts_too=training.prompts_too).to_dict()
    if blend is not None:
        test["ahead"] = evaluate_ahead(predictor, blend, split.test, training.prompts_too)
    readout = readout_of(stored.arrays, recorded.shape.layers)
    if readout is not None:
        test["next_from_layer"] = evaluate_readout(predictor, readout, split.test, training.prompts_too)
    return {
        "file": str(out),
        "kind": stored.kind,
        "model": stored.model,
        "bytes": out.stat().st_size,
        "parameters": sum(p.numel() for p in network.parameters()),
        "history": history,
        "test": test,
    }


def make_network(
    recorded: TraceSet, split: Split, training: PredictorTraining, model_embedding: torch.Tensor | None = None
) -> PredictorNetwork:
    """The network before training, the same for a seed."""
    if training.kind not in KINDS:
        raise InvalidSetting(f"There is no predictor of kind {training.kind!r}.", f"Choose one of: {', '.join(KINDS)}.")
    if model_embedding is not None and len(model_embedding) < recorded.shape.vocabulary:
        raise InvalidSetting(
            f"The model has {len(model_embedding)} token ids, the traces {recorded.shape.vocabulary}.",
            "Name the model that the traces were recorded with.",
        )
    if training.start is not None:
        return _learnt_before(training.start, recorded, split)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.settings.seed)
        if training.kind != recurrent.KIND:
            from engine.routing.predictors.token_transformer import TokenTransformer

            return TokenTransformer(recorded.shape)
        width = _hidden_width(recorded.traces) if training.use_hidden else 0
        sizes = replace(training.sizes, hidden_width=width)
        network = RecurrentNetwork(recorded.shape, sizes, model_embedding)
    start_from_tokens(network, split.train)
    if width:
        network.standardise(*_channels(split.train))
    return network


def _learnt_before(start: StoredPredictor, recorded: TraceSet, split: Split) -> PredictorNetwork:
    """Raises InvalidSetting for a predictor of another kind or model."""
    if start.kind != recurrent.KIND or start.model != recorded.model:
        raise InvalidSetting(
            f"A predictor of kind {start.kind} for model {start.model} cannot learn on from these traces.",
            f"Start from a recurrent predictor of model {recorded.model}.",
        )
    network = recurrent.network_of(start)
    told = [
        trace for trace in split.train if trace.hidden is not None and trace.hidden.shape[1] == network.hidden_width
    ]
    if told:
        network.rescale(_channels(told)[1])
    return network


def _export(network: PredictorNetwork, calibration: np.ndarray, model: str, history: dict[str, Any]) -> StoredPredictor:
    if isinstance(network, RecurrentNetwork):
        return recurrent.export(network, calibration, model, history)
    from engine.routing.predictors import token_transformer

    assert isinstance(network, token_transformer.TokenTransformer)
    return token_transformer.export(network, calibration, model, history)


def _windows(network: PredictorNetwork, traces: Sequence[RoutingTrace], settings: TrainingSettings) -> Windows:
    return Windows(
        traces,
        network.shape.experts,
        network.horizon,
        settings.window,
        settings.batch,
        network.hidden_width,
        network.prompt_tokens,
    )


def _hidden_width(traces: Sequence[RoutingTrace]) -> int:
    """Of the recorded residual streams; 0 unless every conversation has them."""
    widths = {0 if trace.hidden is None else trace.hidden.shape[1] for trace in traces}
    return widths.pop() if len(widths) == 1 else 0


def _channels(traces: Sequence[RoutingTrace]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of the residual stream."""
    step = max(sum(map(len, traces)) // ENOUGH_TOKENS, 1)
    rows = np.concatenate([trace.hidden[::step] for trace in traces if trace.hidden is not None]).astype(np.float32)
    return torch.from_numpy(rows.mean(0)), torch.from_numpy(rows.std(0))


def _history(split: Split, training: PredictorTraining, state: TrainingState) -> dict[str, Any]:
    earlier = {} if training.start is None else training.start.history
    return {
        "tokens_before": earlier.get("tokens_before", 0) + earlier.get("tokens", {}).get("train", 0),
        "tokens": {name: sum(map(len, part)) for name, part in vars(split).items()},
        "conversations": {name: len({trace.conversation for trace in part}) for name, part in vars(split).items()},
        "settings": asdict(training.settings),
        "steps": state.step,
        "best_step": state.best_step,
        "seconds": state.seconds,
        "validation_recall": state.best_recall,
    }


def _told(on_progress: Progress | None) -> Callable[[int, int], None]:
    return lambda done, total: on_progress("Training the readout", done, total) if on_progress else None


def _tell(on_progress: Progress | None, stage: str) -> None:
    if on_progress:
        on_progress(stage, 0, 0)
