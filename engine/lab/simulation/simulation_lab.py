"""Recorded conversations and what is simulated with them: any policy at any budget over any link."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.cache.policy_choice import PLAIN_POLICIES
from engine.cache.timed_transfers import EmulatedSpeed
from engine.errors import InvalidSetting
from engine.lab.simulation.compute_times import ComputeTimes
from engine.lab.simulation.contenders import make_contender
from engine.lab.simulation.lru_curve import lru_curve
from engine.lab.simulation.simulate import SimulatedMachine, SimulatedRun, Simulator
from engine.model.kernels import release_threads
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace

STALL_PREFIX = "stall:"
STALL_TOLERANCE = 0.005
SECANT_STEPS = 8


class SimulationLab:
    """`stored` is the trained predictor of the predictive policy; `warm_up` conversations only fill the cache."""

    def __init__(
        self,
        traces: Sequence[RoutingTrace],
        shape: RoutingShape,
        expert_bytes: int,
        compute: ComputeTimes,
        stored: StoredPredictor | None,
        warm_up: int = 1,
    ) -> None:
        if len(traces) <= warm_up or not any(trace.decoded.any() for trace in traces[warm_up:]):
            raise InvalidSetting(
                f"{len(traces)} recorded conversations are too few: the first fills the cache, the others are decoded.",
                "Record more answers with `trace --prompts FILE --tokens 128`.",
            )
        self._traces, self._shape, self._expert_bytes = traces, shape, expert_bytes
        self._compute, self._stored, self._warm_up = compute, stored, warm_up
        self._bytes_per_token: dict[tuple[str, float], float] = {}  # of plain policies: no link changes them

    @property
    def conversations(self) -> int:
        """That are counted."""
        return len(self._traces) - self._warm_up

    def run(self, policy: str, share: float, speed: EmulatedSpeed, compute: ComputeTimes | None = None) -> SimulatedRun:
        """Decodes everything with a `share` of the experts in slots; `compute` in place of the lab's."""
        machine = SimulatedMachine(
            self._shape.layers, self._shape.experts, self._expert_bytes, compute or self._compute, speed
        )
        simulator = Simulator(
            machine, self._slots(share), make_contender(policy, self._traces, self._shape, self._stored)
        )
        simulator.run(self._traces[: self._warm_up])
        found = simulator.run(self._traces[self._warm_up :])
        release_threads()  # the predictor's: an engine beside the lab may be measured next
        return found

    def speed(self, link: str, share: float) -> EmulatedSpeed:
        """Of a link as the engine names them, or of "stall:50%": so fast that the best plain cache with that share of
        the experts waits for half of the time. Raises InvalidSetting.
        """
        if not link.startswith(STALL_PREFIX):
            return EmulatedSpeed.parse(link if link.startswith("emulated:") else f"emulated:{link}")
        wanted = read_share(link.removeprefix(STALL_PREFIX))
        return EmulatedSpeed(min(self._speed_for(policy, share, wanted) for policy in PLAIN_POLICIES))

    def facts(self, run: SimulatedRun, share: float, speed: EmulatedSpeed) -> dict[str, Any]:
        """What a report says of a run."""
        return {
            "slots": self._slots(share),
            "link_bytes_per_second": speed.bytes_per_second,
            **run.facts(),
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
        computing = self._compute.token(self._shape.layers, self._shape.top_k)
        moved = self._bytes_per_token.get((policy, share))
        if moved is None:
            any_speed = EmulatedSpeed(self._expert_bytes * self._shape.layers / computing)
            run = self.run(policy, share, any_speed)
            moved = self._bytes_per_token[policy, share] = run.bytes_moved / max(run.tokens, 1)
        speed = max(moved, 1.0) / (computing * stall / (1 - stall))
        for _ in range(SECANT_STEPS):
            found = self.run(policy, share, EmulatedSpeed(speed)).stall_share
            if abs(found - stall) < STALL_TOLERANCE:
                break
            speed *= found / (1 - found) * (1 - stall) / stall if found else 0.5
        return speed


def read_share(text: str) -> float:
    """From "15%". Raises InvalidSetting."""
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not text.strip().endswith("%") or not 0 < share <= 1:
        raise InvalidSetting(f"{text!r} is not a share.", 'Write it like "25%".')
    return share
