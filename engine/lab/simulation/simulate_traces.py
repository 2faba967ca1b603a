"""`simulate`: every policy, budget and link on recorded routing, beside the bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import InvalidSetting
from engine.lab.report import make_report
from engine.lab.simulation.compute_times import ComputeTimes
from engine.lab.simulation.simulation_lab import SimulationLab, read_share
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_set import TraceSet

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SimulationSettings:
    """`shares` of all experts, "15%"; `links` as `SimulationLab.speed` takes them. `prediction_seconds`: what
    predicting costs the computing thread in a token. `warm_up`: conversations that only fill the cache. `emulated`: the
    card whose pace this is, in words.
    """

    shares: tuple[float, ...]
    links: tuple[str, ...]
    policies: tuple[str, ...]
    token_seconds: float
    expert_bytes: int
    prediction_seconds: float = 0.0
    warm_up: int = 1
    emulated: str | None = None


def simulate_traces(
    traces: Sequence[RoutingTrace],
    shape: RoutingShape,
    settings: SimulationSettings,
    stored: StoredPredictor | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """The report. Raises InvalidSetting for too few conversations or an unknown policy or link."""
    compute = ComputeTimes.of_token(settings.token_seconds, shape.layers, shape.top_k, settings.prediction_seconds)
    lab = SimulationLab(traces, shape, settings.expert_bytes, compute, stored, settings.warm_up)
    runs = simulate_grid(lab, settings.shares, settings.links, settings.policies, on_progress)
    return make_report(runs, {}, settings=asdict(settings), conversations=lab.conversations, lru_curve=lab.curves())


def simulate_grid(
    lab: SimulationLab,
    shares: Sequence[float],
    links: Sequence[str],
    policies: Sequence[str],
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """A run for every budget, link and policy."""
    runs: list[dict[str, Any]] = []
    total = len(shares) * len(links) * len(policies)
    for share in shares:
        for link in links:
            speed = lab.speed(link, share)
            for policy in policies:
                run = lab.run(policy, share, speed)
                runs.append({"policy": policy, "budget": f"{share:.0%}", "link": link, **lab.facts(run, share, speed)})
                on_progress(f"Simulated {policy} at {share:.0%} over {link}", len(runs), total)
    return runs


def read_shares(text: str) -> tuple[float, ...]:
    """From "15%,25%". Raises InvalidSetting."""
    return tuple(read_share(part) for part in text.split(","))


def require_shape(recorded: TraceSet, experts_per_layer: Sequence[int]) -> None:
    """Raises InvalidSetting unless the traces can be of a model of this shape."""
    if (recorded.shape.layers, recorded.shape.experts) != (len(experts_per_layer), max(experts_per_layer)):
        raise InvalidSetting(
            f"The routing was recorded with another model, of {recorded.shape.layers} layers with "
            f"{recorded.shape.experts} experts.",
            "Give that model with --model.",
        )
