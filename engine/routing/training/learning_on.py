"""From the predictor in force to one that knows a person's own chats, judged by those of them that neither learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InvalidSetting
from engine.routing.predictors.baselines import PreviousToken
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.predictors.registry import predictor_of
from engine.routing.predictors.token_table import fit_token_table
from engine.routing.scoring.evaluation import evaluate
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_set import TraceSet
from engine.routing.training.predictor_training import PredictorTraining, train_predictor
from engine.routing.training.split import split_by_conversation
from engine.routing.training.train import Progress

JUDGING_TOKENS = 100  # of answers: fewer do not tell which predictor is the better one


@dataclass(frozen=True)
class LearntOn:
    """What came of it. `tokens` and `conversations` were learnt from; recall at top k, before the step, over
    `judged_tokens` of answers in conversations that were not."""

    tokens: int
    conversations: int
    judged_tokens: int
    recall_before: float
    recall_after: float

    @property
    def better(self) -> bool:
        """Whether the new predictor deserves the old one's place."""
        return self.recall_after > self.recall_before


def learn_on(
    recorded: TraceSet,
    out: Path,
    training: PredictorTraining,
    on_progress: Progress | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> LearntOn:
    """Writes what `training.start` becomes to `out`; without a start, a first predictor, which then has to be better
    than guessing by the token before and by a table of the tokens.

    Raises what `train_predictor` does, and InvalidSetting where too little is there to judge by.
    """
    split = split_by_conversation(recorded.traces)
    judged_tokens = sum(int(trace.decoded.sum()) for trace in split.test)
    if judged_tokens < JUDGING_TOKENS:
        raise InvalidSetting(
            f"The chats put aside to judge by hold {judged_tokens} tokens of answers.",
            f"Chat on: {JUDGING_TOKENS} are needed.",
        )
    present = _guesses(recorded, split.train) if training.start is None else [predictor_of(training.start)]
    before = max(_recall(predictor, split.test) for predictor in present)
    report = train_predictor(recorded, out, training, None, on_progress, must_stop)
    after = report["test"]["rows"][0]["recall"][str(recorded.shape.top_k)]
    history = report["history"]
    return LearntOn(history["tokens"]["train"], history["conversations"]["train"], judged_tokens, before, after)


def _guesses(recorded: TraceSet, known: Sequence[RoutingTrace]) -> list[RoutingPredictor]:
    return [PreviousToken(recorded.shape), fit_token_table(recorded.shape, known)]


def _recall(predictor: RoutingPredictor, traces: Sequence[RoutingTrace]) -> float:
    top_k = predictor.shape.top_k
    return evaluate(predictor, traces, [top_k]).rows[0].recall(top_k)
