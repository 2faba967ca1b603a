"""Prompts spread over nodes in turn and by routes, on recorded routing: what each way moves, without Ray or a clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from app.batch.nodes.feed import PromptFeed, feed_sizes
from app.batch.nodes.spread import ROUND_ROBIN, ROUTES, ByRoutes, RoundRobin, Spread
from engine.errors import InvalidSetting
from engine.lab.grouping.node_replay import NodeRun, replay_on_nodes
from engine.lab.grouping.pass_cache import pass_cache
from engine.lab.grouping.unseen import OnProgress, traces_of
from engine.lab.report import make_report
from engine.routing.predictor_files import find_predictor
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.predictors.registry import predictor_of
from engine.routing.prompt_routes import predicted_use
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace
from engine.scheduling.paths import used_experts

TRUE_ROUTES = "true-routes"
SPREADS = (ROUND_ROBIN, ROUTES, TRUE_ROUTES)
"""In turn, by the routes that are expected of a prompt, and by those that its answer takes, as if they were known."""
MOST_CONVERSATIONS = 10_000


@dataclass(frozen=True)
class SpreadSettings:
    """`at_once`: answers that share a node's passes; `shares` of all experts in each node's cache; `orders` of the
    file: its own, and shuffled.
    """

    nodes: tuple[int, ...] = (2, 4)
    at_once: tuple[int, ...] = (8,)
    shares: tuple[float, ...] = (0.15, 0.25, 0.50)
    policies: tuple[str, ...] = ("lru-per-layer",)
    orders: int = 5


@dataclass(frozen=True)
class _Answers:
    """Of each conversation: `used`, bool [tokens, layers, experts] of its answer, and what a spread knows of it."""

    used: list[np.ndarray]
    known: Mapping[str, list[np.ndarray]]

    def in_order(self, order: Sequence[int]) -> _Answers:
        known = {name: [uses[place] for place in order] for name, uses in self.known.items()}
        return _Answers([self.used[place] for place in order], known)

    def spread(self, name: str, nodes: int, window_lines: int) -> Spread:
        if name == ROUND_ROBIN:
            return RoundRobin(nodes)
        return ByRoutes(nodes, lambda number, _: self.known[name][number], window_lines // nodes)


def simulate_recorded_spread(
    files: Sequence[Path], model: str, settings: SpreadSettings, seen_too: bool, on_progress: OnProgress
) -> dict[str, Any]:
    """`simulate_spread` of conversations in `files`, of `model`, that trained nothing. Raises EngineError."""
    recorded, traces, expert_bytes = traces_of(files, model, MOST_CONVERSATIONS, 2, seen_too, on_progress)
    stored, problem = find_predictor(recorded.fingerprint)
    if stored is None:
        raise InvalidSetting(f"No predictor knows this model's routes.{problem}", "Train one: `train-predictor`.")
    return simulate_spread(traces, recorded.shape, expert_bytes, predictor_of(stored), settings, on_progress)


def simulate_spread(
    traces: Sequence[RoutingTrace],
    shape: RoutingShape,
    expert_bytes: int,
    predictor: RoutingPredictor,
    settings: SpreadSettings,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """The report: a run for each cell, spread and order; `ratios` of bytes a token to round-robin's in the same order,
    the median over orders, the least and the most. Prompts are not replayed. Raises InvalidSetting.
    """
    answers = _answers(traces, shape, predictor)
    if len(answers.used) < 2 * max(settings.nodes):
        raise InvalidSetting(
            f"{len(answers.used)} recorded answers are too few for {max(settings.nodes)} nodes.",
            "Record more with `trace --prompts FILE`, or name fewer nodes.",
        )
    cells, runs = list(_cells(settings)), []
    for number, cell in enumerate(cells):
        for order in range(settings.orders):
            runs += _compare(answers.in_order(_order(len(answers.used), order)), shape, expert_bytes, cell, order)
        on_progress(f"Spread {len(answers.used)} prompts over {cell.nodes} nodes", number + 1, len(cells))
    return make_report(runs, _ratios(runs), settings=asdict(settings), conversations=len(answers.used))


@dataclass(frozen=True)
class _Cell:
    nodes: int
    at_once: int
    share: float
    policy: str

    def to_dict(self) -> dict[str, Any]:
        return {"nodes": self.nodes, "at_once": self.at_once, "budget": f"{self.share:.0%}", "policy": self.policy}


def _cells(settings: SpreadSettings) -> Iterator[_Cell]:
    for nodes in settings.nodes:
        for at_once in settings.at_once:
            for share in settings.shares:
                for policy in settings.policies:
                    yield _Cell(nodes, at_once, share, policy)


def _answers(traces: Sequence[RoutingTrace], shape: RoutingShape, predictor: RoutingPredictor) -> _Answers:
    used, expected = [], []
    for trace in traces:
        begins = int(trace.decoded.argmax())
        if begins and trace.decoded[begins]:
            used.append(used_experts(trace.experts[trace.decoded], shape.experts) > 0)
            expected.append(predicted_use(predictor, trace.token_ids[:begins].tolist()))
    return _Answers(used, {ROUTES: expected, TRUE_ROUTES: [answer.mean(0, np.float32) for answer in used]})


def _order(count: int, order: int) -> list[int]:
    return list(range(count)) if order == 0 else np.random.default_rng(order).permutation(count).tolist()


def _compare(
    answers: _Answers, shape: RoutingShape, expert_bytes: int, cell: _Cell, order: int
) -> list[dict[str, Any]]:
    lines = [(number, "") for number in range(len(answers.used))]
    ticket_lines, window_lines = feed_sizes(len(lines), cell.nodes, cell.at_once)
    runs = []
    for name in SPREADS:
        spread = answers.spread(name, cell.nodes, window_lines)
        feed = PromptFeed(iter(lines), 0, spread, cell.nodes, ticket_lines, window_lines)
        caches = [pass_cache(cell.policy, shape, cell.share) for _ in range(cell.nodes)]
        found = replay_on_nodes(answers.used, feed, caches, cell.at_once)
        runs.append(
            cell.to_dict()
            | {"spread": name, "order": order}
            | _facts(_together(found), expert_bytes)
            | {"passes_of_the_longest": max(one.passes for one in found)}
            | {"by_node": [_facts(one, expert_bytes) for one in found]}
        )
    return runs


def _together(runs: Sequence[NodeRun]) -> NodeRun:
    return NodeRun(*(sum(column) for column in zip(*(asdict(run).values() for run in runs), strict=True)))


def _facts(run: NodeRun, expert_bytes: int) -> dict[str, Any]:
    tokens = max(run.tokens, 1)
    return {
        "answers": run.answers,
        "tokens": run.tokens,
        "passes": run.passes,
        "distinct_per_token": run.distinct / tokens,
        "bytes_per_token": run.moved * expert_bytes / tokens,
        "hit_rate": run.hit_rate,
    }


def _ratios(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    in_turn = 1.0
    for run in runs:
        if run["spread"] == ROUND_ROBIN:
            in_turn = max(run["bytes_per_token"], 1.0)
            continue
        cell = f"{run['nodes']}_{run['at_once']}_{run['budget']}_{run['policy']}_{run['spread']}"
        found.setdefault(cell, []).append(run["bytes_per_token"] / in_turn)
    summed = (("", median), ("_least", min), ("_most", max))
    return {f"{cell}{end}": float(of(all_found)) for cell, all_found in found.items() for end, of in summed}
