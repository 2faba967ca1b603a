"""`simulate --chats`: pools of chats that decode together, every policy, budget and link, beside the bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.cache.timed_transfers import EmulatedSpeed
from engine.errors import InvalidSetting
from engine.lab.report import make_report
from engine.lab.simulation.compute_times import ComputeTimes
from engine.lab.simulation.joint_contenders import make_joint_contender
from engine.lab.simulation.joint_passes import JointPass, joint_passes
from engine.lab.simulation.simulate import SimulatedMachine, SimulatedRun
from engine.lab.simulation.simulate_joint import JointSimulator
from engine.lab.simulation.simulate_traces import SimulationSettings
from engine.lab.simulation.simulation_lab import STALL_PREFIX, STALL_TOLERANCE, read_share
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.predictors.registry import predictor_of
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace

FORETOLD = "predictive+chats"  # predictive, told by a predictor for each chat what its token will use
REFERENCE = "lru-per-layer"  # whose waiting "stall:50%" is about
WARM_UP, COUNTED = 30, 60  # passes
BISECTIONS = 7
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Pool:
    """Passes of one number of chats; `foretold` are the same with each chat's predictions."""

    passes: Sequence[JointPass]
    foretold: Sequence[JointPass]


def simulate_pools(
    traces: Sequence[RoutingTrace],
    shape: RoutingShape,
    chats: Sequence[int],
    settings: SimulationSettings,
    stored: StoredPredictor | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """The report. Raises InvalidSetting for too few conversations or an unknown policy or link."""
    lab = _PoolLab(shape, settings, stored)
    runs: list[dict[str, Any]] = []
    total = len(chats) * len(settings.shares) * len(settings.links) * len(settings.policies)
    for number in chats:
        pool = _pool(traces, number, shape, stored, FORETOLD in settings.policies)
        for share in settings.shares:
            for link in settings.links:
                speed = lab.speed(pool, link, share)
                for policy in settings.policies:
                    run = lab.run(pool, policy, share, speed)
                    runs.append(_facts(run, number, policy, share, speed))
                    on_progress(f"Simulated {policy}, {number} chats at {share:.0%}", len(runs), total)
    return make_report(runs, {}, settings=asdict(settings), conversations=len(traces))


def read_chats(text: str) -> tuple[int, ...]:
    """From "4,8". Raises InvalidSetting."""
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise InvalidSetting(f"{text!r} are not numbers of chats.", 'Write them like "4,8,16".')
    return tuple(int(number) for number in numbers)


class _PoolLab:
    def __init__(self, shape: RoutingShape, settings: SimulationSettings, stored: StoredPredictor | None) -> None:
        self._shape, self._settings, self._stored = shape, settings, stored
        self._compute = ComputeTimes.of_token(settings.token_seconds, shape.layers, shape.top_k)

    def run(self, pool: _Pool, policy: str, share: float, speed: EmulatedSpeed) -> SimulatedRun:
        """After passes that fill the cache."""
        shape, settings = self._shape, self._settings
        passes, name = (pool.foretold, "predictive") if policy == FORETOLD else (pool.passes, policy)
        machine = SimulatedMachine(shape.layers, shape.experts, settings.expert_bytes, self._compute, speed)
        slots = max(round(share * shape.outputs), shape.top_k)
        simulator = JointSimulator(machine, slots, make_joint_contender(name, passes, shape, self._stored))
        warm_up = min(WARM_UP, len(passes) // 2)
        simulator.run(passes[:warm_up])
        return simulator.run(passes[warm_up:])

    def speed(self, pool: _Pool, link: str, share: float) -> EmulatedSpeed:
        """Of a link as `SimulationLab.speed` takes it; "stall:50%" by halving, since waiting falls as speed rises."""
        if not link.startswith(STALL_PREFIX):
            return EmulatedSpeed.parse(link if link.startswith("emulated:") else f"emulated:{link}")
        wanted = read_share(link.removeprefix(STALL_PREFIX))
        run = self.run(pool, REFERENCE, share, EmulatedSpeed(1e9))
        computing = run.seconds - float(run.counters["stall_seconds"])
        fastest = max(run.bytes_moved, 1) / max(computing * wanted / (1 - wanted), 1e-9)
        slowest = 0.25 * fastest
        for _ in range(BISECTIONS):
            middle = (slowest * fastest) ** 0.5
            found = self.run(pool, REFERENCE, share, EmulatedSpeed(middle)).stall_share
            if abs(found - wanted) < STALL_TOLERANCE:
                break
            slowest, fastest = (middle, fastest) if found > wanted else (slowest, middle)
        return EmulatedSpeed(middle)


def _pool(
    traces: Sequence[RoutingTrace], chats: int, shape: RoutingShape, stored: StoredPredictor | None, foretold: bool
) -> _Pool:
    def new_predictor() -> RoutingPredictor:
        assert stored is not None
        return predictor_of(stored)

    passes = list(joint_passes(traces, chats, WARM_UP + COUNTED))
    if not foretold:
        return _Pool(passes, passes)
    if stored is None:
        raise InvalidSetting(f"{FORETOLD!r} needs a trained predictor.", "Give one with --predictor.")
    return _Pool(passes, list(joint_passes(traces, chats, WARM_UP + COUNTED, new_predictor)))


def _facts(run: SimulatedRun, chats: int, policy: str, share: float, speed: EmulatedSpeed) -> dict[str, Any]:
    return {
        "chats": chats,
        "policy": policy,
        "budget": f"{share:.0%}",
        "link_bytes_per_second": speed.bytes_per_second,
        **run.facts(),
    }
