"""`simulate`: every policy, budget and link on recorded routing, beside the bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.cache.policy_choice import PLAIN_POLICIES
from engine.cache.timed_transfers import EmulatedSpeed
from engine.errors import InvalidSetting
from engine.lab.report import make_report
from engine.lab.simulation.compute_times import ComputeTimes
from engine.lab.simulation.contenders import make_contender
from engine.lab.simulation.lru_curve import lru_curve
from engine.lab.simulation.simulate import SimulatedMachine, SimulatedRun, Simulator
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_set import TraceSet

OnProgress = Callable[[str, int, int], None]
SECANT_STEPS = 6


@dataclass(frozen=True)
class SimulationSettings:
    """`shares` of all experts, "15%"; `links` as the engine names them, or "stall:50%": so fast that the best plain
    cache of that budget waits for that share of the time. `prediction_seconds`: what predicting costs the computing
    thread in a token. `warm_up`: conversations that only fill the cache.
    """

    shares: tuple[float, ...]
    links: tuple[str, ...]
    policies: tuple[str, ...]
    token_seconds: float
    expert_bytes: int
    prediction_seconds: float = 0.0
    warm_up: int = 1


def simulate_traces(
    traces: Sequence[RoutingTrace],
    shape: RoutingShape,
    settings: SimulationSettings,
    stored: StoredPredictor | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """The report. Raises InvalidSetting for too few conversations or an unknown policy or link."""
    if len(traces) <= settings.warm_up or not any(trace.decoded.any() for trace in traces[settings.warm_up :]):
        raise InvalidSetting(
            f"{len(traces)} recorded conversations are too few: the first fills the cache, the others are decoded.",
            "Record more answers with `trace --prompts FILE --tokens 128`.",
        )
    lab = _Lab(traces, shape, settings, stored)
    runs: list[dict[str, Any]] = []
    total = len(settings.shares) * len(settings.links) * len(settings.policies)
    for share in settings.shares:
        for link in settings.links:
            speed = lab.speed(link, share)
            for policy in settings.policies:
                run = lab.run(policy, share, speed)
                runs.append({"policy": policy, "budget": f"{share:.0%}", "link": link, **lab.facts(run, share, speed)})
                on_progress(f"Simulated {policy} at {share:.0%} over {link}", len(runs), total)
    return make_report(
        runs,
        {},
        settings=asdict(settings),
        conversations=len(traces) - settings.warm_up,
        lru_curve=lab.curves(),
    )


class _Lab:
    """Traces, and what is simulated with them."""

    def __init__(
        self,
        traces: Sequence[RoutingTrace],
        shape: RoutingShape,
        settings: SimulationSettings,
        stored: StoredPredictor | None,
    ) -> None:
        self._traces, self._shape, self._settings, self._stored = traces, shape, settings, stored
        self._compute = ComputeTimes.of_token(
            settings.token_seconds, shape.layers, shape.top_k, settings.prediction_seconds
        )

    def run(self, policy: str, share: float, speed: EmulatedSpeed) -> SimulatedRun:
        layers, experts = self._shape.layers, self._shape.experts
        machine = SimulatedMachine(layers, experts, self._settings.expert_bytes, self._compute, speed)
        contender = make_contender(policy, self._traces, self._shape, self._stored)
        simulator = Simulator(machine, self._slots(share), contender)
        simulator.run(self._traces[: self._settings.warm_up])
        return simulator.run(self._traces[self._settings.warm_up :])

    def speed(self, link: str, share: float) -> EmulatedSpeed:
        if not link.startswith("stall:"):
            return EmulatedSpeed.parse(link if link.startswith("emulated:") else f"emulated:{link}")
        wanted = _share(link.removeprefix("stall:"))
        return EmulatedSpeed(min(self._speed_for(policy, share, wanted) for policy in PLAIN_POLICIES))

    def facts(self, run: SimulatedRun, share: float, speed: EmulatedSpeed) -> dict[str, Any]:
        return {
            "slots": self._slots(share),
            "link_bytes_per_second": speed.bytes_per_second,
            "tokens": run.tokens,
            "tokens_per_second": run.tokens_per_second,
            "hit_rate": run.hit_rate,
            "late_rate": run.counters["late"] / max(run.counters["activations"], 1),
            "stall_share": run.stall_share,
            "bytes_per_token": run.bytes_moved / max(run.tokens, 1),
            "bytes_prefetch_wasted": run.counters["bytes_prefetch_wasted"],
        }

    def curves(self) -> dict[str, list[float]]:
        """Hit rate of LRU by number of slots, 0, 1, ..., in one and in equal parts."""
        made = {
            name: lru_curve(self._traces, self._shape.layers, self._shape.experts, per_layer)
            for name, per_layer in (("lru", False), ("lru-per-layer", True))
        }
        return {name: [curve.hit_rate(n) for n in range(len(curve.hits))] for name, curve in made.items()}

    def _slots(self, share: float) -> int:
        return max(round(share * self._shape.outputs), self._shape.top_k)

    def _speed_for(self, policy: str, share: float, stall: float) -> float:
        """Bytes a second at which `policy` waits for `stall` of the time: waiting is about as long as moving."""
        speed = self._settings.expert_bytes * self._shape.layers / self._settings.token_seconds
        for _ in range(SECANT_STEPS):
            found = self.run(policy, share, EmulatedSpeed(speed)).stall_share
            if abs(found - stall) < 0.002:
                break
            speed *= found / (1 - found) * (1 - stall) / stall if found else 0.5
        return speed


def read_shares(text: str) -> tuple[float, ...]:
    """From "15%,25%". Raises InvalidSetting."""
    return tuple(_share(part) for part in text.split(","))


def _share(text: str) -> float:
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not text.strip().endswith("%") or not 0 < share <= 1:
        raise InvalidSetting(f"{text!r} is not a share.", 'Write it like "25%".')
    return share


def require_shape(recorded: TraceSet, experts_per_layer: Sequence[int]) -> None:
    """Raises InvalidSetting unless the traces can be of a model of this shape."""
    if (recorded.shape.layers, recorded.shape.experts) != (len(experts_per_layer), max(experts_per_layer)):
        raise InvalidSetting(
            f"The routing was recorded with another model, of {recorded.shape.layers} layers with "
            f"{recorded.shape.experts} experts.",
            "Give that model with --model.",
        )
