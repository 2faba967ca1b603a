"""Prediction beside the best plain cache: a grid of budgets and links on the virtual clock, some of its cells for real.

The answers are recorded once; simulations replay them, real engines give them again. A link is named by how long the
best plain cache waits on it, so that the grid means the same on a slow machine and on a fast one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engine import Engine
from engine.cache.policy_choice import PLAIN_POLICIES, PREDICTIVE
from engine.cache.timed_transfers import EmulatedSpeed
from engine.checkpoint.catalog import resolve_model
from engine.checkpoint.expert_index import ExpertIndex
from engine.errors import InvalidSetting
from engine.lab.decode_measure import DecodeMeasurement, measure_decoding
from engine.lab.prompts import DEFAULT_PROMPTS, Messages
from engine.lab.report import fastest_plain, make_report
from engine.lab.simulation.compute_times import ComputeTimes
from engine.lab.simulation.knowing import NEXT, REUSE, THIS
from engine.lab.simulation.simulate_traces import simulate_grid
from engine.lab.simulation.simulation_lab import STALL_PREFIX, SimulationLab
from engine.lab.trace_prompts import TraceSettings, trace_prompts
from engine.routing.predictor_files import find_predictor
from engine.routing.traces.trace_store import TraceStore

ROUTERS_AHEAD = 4
CHECKED_ANSWERS, CHECKED_LINK = 3, "emulated:5GBps"  # that say how fast the machine computes just now
BOUNDS = tuple(
    f"{PREDICTIVE}:{'+'.join(known)}" for known in ((THIS,), (NEXT,), (THIS, NEXT), (REUSE,), (THIS, NEXT, REUSE))
)
CELLS = ((0.15, 0.50), (0.25, 0.50), (0.35, 0.50), (0.45, 0.50), (0.60, 0.05))

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PredictionSettings:
    """`shares` of the experts against `stalls`, the best plain cache's share of time spent waiting; `cells` of them
    are measured for real too, an answer to each prompt but the first making a pair. `prediction_share`: what
    predicting is taken to cost in the grid, as a share of a resident token's time. `bounds`: simulate also what
    prediction would gain if it knew parts of the future.
    """

    model: str = "demo"
    shares: tuple[float, ...] = (0.15, 0.25, 0.35, 0.45, 0.60)
    stalls: tuple[float, ...] = (0.90, 0.70, 0.50, 0.25, 0.05)
    cells: tuple[tuple[float, float], ...] = CELLS
    tokens: int = 49
    prompts: tuple[Messages, ...] = DEFAULT_PROMPTS
    prediction_share: float = 0.1
    bounds: bool = False


def run_bench_prediction(settings: PredictionSettings, on_progress: Progress) -> dict[str, Any]:
    """The report: `runs` of the grid, `cells` for real, `ratios` of both. Raises EngineError."""
    if len(settings.prompts) < 2:
        raise InvalidSetting("One prompt is too few: the first only fills the cache.", "Give at least two.")
    path = resolve_model(settings.model, on_progress)
    with Engine.load(path, budget="100%", policy="lru", link="disk") as resident:
        bench = _Bench(settings, path, resident, on_progress)
        runs = bench.grid()
        cells = [bench.cell(runs, share, stall) for share, stall in settings.cells]
    ratios = {**_grid_ratios(runs), **{f"real_{cell['cell']}": cell["speed_ratio"] for cell in cells}}
    facts = asdict(settings) | {"prompts": len(settings.prompts)}
    return make_report(runs, ratios, model=str(path), settings=facts, cells=cells, identical_ids=bench.identical_ids)


class _Bench:
    def __init__(self, settings: PredictionSettings, path: Path, resident: Engine, on_progress: Progress) -> None:
        self._settings, self._path, self._resident, self._on_progress = settings, path, resident, on_progress
        self._expert_bytes = ExpertIndex.from_checkpoint(path).slot_bytes
        self._shape = resident.traced_model.shape
        self._ids: dict[int, set[tuple[int, ...]]] = {}
        stored, _ = find_predictor(resident.traced_model.fingerprint)
        resident_token = ComputeTimes.of_token(1.0, self._shape.layers, self._shape.top_k, settings.prediction_share)
        self._lab = SimulationLab(self._record(), self._shape, self._expert_bytes, resident_token, stored)

    @property
    def identical_ids(self) -> bool:
        """Every engine gave the same answers."""
        return all(len(answers) == 1 for answers in self._ids.values())

    def grid(self) -> list[dict[str, Any]]:
        """With a resident token's time as the second: only the ratios matter, and the bytes a link moves in it."""
        links = [f"{STALL_PREFIX}{stall:.0%}" for stall in self._settings.stalls]
        policies = *PLAIN_POLICIES, PREDICTIVE, *(BOUNDS if self._settings.bounds else ())
        return simulate_grid(self._lab, self._settings.shares, links, policies, self._on_progress)

    def cell(self, runs: Sequence[dict[str, Any]], share: float, stall: float) -> dict[str, Any]:
        """Alternated pairs of answers with the best plain cache and with prediction, over a link as slow for this
        machine now as the grid's; and what simulation says of the same with the computing time that was measured.
        """
        link, budget = f"{STALL_PREFIX}{stall:.0%}", f"{share:.0%}"
        best = fastest_plain(runs, budget, link)
        if best is None:
            raise InvalidSetting(f"The cell {budget} over {link} is not in the grid.", "Name one that is.")
        token_seconds = self._computing_seconds(budget, best["policy"])
        speed = EmulatedSpeed.parse(f"emulated:{best['link_bytes_per_second'] / token_seconds / 1e9:.3f}GBps")
        measured = self._pairs(budget, best["policy"], f"emulated:{speed.bytes_per_second / 1e9:.3f}GBps")
        speeds = {policy: [one.tokens_per_second for one in ones] for policy, ones in measured.items()}
        ratios = sorted(ours / theirs for ours, theirs in zip(speeds[PREDICTIVE], speeds[best["policy"]], strict=True))
        sums = {policy: _sums(ones) for policy, ones in measured.items()}
        simulated = self._simulate(share, speed, best["policy"], sums)
        return {
            "cell": f"{budget}_{link}",
            "plain_policy": best["policy"],
            "plain_computing_seconds": token_seconds,
            "link_bytes_per_second": speed.bytes_per_second,
            "speed_ratio": median(ratios),
            "speed_ratio_least": ratios[0],
            "speed_ratio_most": ratios[-1],
            "pairs": len(ratios),
            "bytes_ratio": sums[PREDICTIVE]["bytes_per_token"] / max(sums[best["policy"]]["bytes_per_token"], 1.0),
            "real": sums,
            "simulated": simulated,
            "simulated_over_real": {
                policy: simulated[policy]["tokens_per_second"] / sums[policy]["tokens_per_second"] for policy in sums
            },
        }

    def _pairs(self, budget: str, plain: str, link: str) -> dict[str, list[DecodeMeasurement]]:
        """An answer to every prompt but the first from each; who begins alternates."""
        first, *others = self._settings.prompts
        found: dict[str, list[DecodeMeasurement]] = {plain: [], PREDICTIVE: []}
        with (
            Engine.load(self._path, budget=budget, policy=plain, link=link) as before,
            Engine.load(self._path, budget=budget, policy=PREDICTIVE, link=link) as ours,
        ):
            engines = [(plain, before), (PREDICTIVE, ours)]
            for _, engine in engines:
                measure_decoding(engine, [first], self._settings.tokens)
            for number, prompt in enumerate(others, start=1):
                for policy, engine in engines if number % 2 else reversed(engines):
                    measured = measure_decoding(engine, [prompt], self._settings.tokens)
                    found[policy].append(measured)
                    self._ids.setdefault(number, set()).add(measured.ids[0])
                self._on_progress(f"Measured {budget} over {link}", number, len(others))
        return found

    def _simulate(
        self, share: float, speed: EmulatedSpeed, plain: str, real: dict[str, dict[str, float]]
    ) -> dict[str, dict[str, float]]:
        """The same two, each with the computing time that was measured in it, and with what predicting took."""
        found = {}
        for policy in (plain, PREDICTIVE):
            compute = ComputeTimes.of_token(
                real[policy]["computing_seconds"],
                self._shape.layers,
                self._shape.top_k,
                real[policy]["prediction_seconds"],
            )
            run = self._lab.run(policy, share, speed, compute)
            found[policy] = {
                "tokens_per_second": run.tokens_per_second,
                "stall_share": run.stall_share,
                "hit_rate": run.hit_rate,
                "bytes_per_token": run.bytes_moved / run.tokens,
            }
        return found

    def _record(self) -> list[Any]:
        """The answers' routing, with what deeper routers and tapped layers saw."""
        settings = TraceSettings(self._settings.tokens, temperature=0.0, ahead=ROUTERS_AHEAD, hidden=True)
        with (
            tempfile.TemporaryDirectory() as folder,
            TraceStore(Path(folder) / "routing.sqlite", self._resident.traced_model) as store,
        ):
            trace_prompts(self._resident, store, self._settings.prompts, settings, self._on_progress)
            return list(store.traces())

    def _computing_seconds(self, budget: str, plain: str) -> float:
        """What a token takes the plain cache now, but for waiting: more than a resident one, since it asks for more."""
        prompts = [self._settings.prompts[0]]
        with Engine.load(self._path, budget=budget, policy=plain, link=CHECKED_LINK) as engine:
            measured = [measure_decoding(engine, prompts, self._settings.tokens) for _ in range(CHECKED_ANSWERS)]
        return median((one.wall_seconds - one.stall_seconds) / one.tokens for one in measured)


def _sums(measured: Sequence[DecodeMeasurement]) -> dict[str, float]:
    tokens, seconds = sum(one.tokens for one in measured), sum(one.wall_seconds for one in measured)
    stalled, predicting = (
        sum(getattr(one, name) for one in measured) for name in ("stall_seconds", "prediction_seconds")
    )
    return {
        "tokens_per_second": tokens / seconds,
        "stall_share": stalled / seconds,
        "hit_rate": sum(one.hits for one in measured) / sum(one.activations for one in measured),
        "bytes_per_token": sum(one.bytes_moved["bytes_total"] for one in measured) / tokens,
        "computing_seconds": (seconds - stalled - predicting) / tokens,
        "prediction_seconds": predicting / tokens,
        "prediction_share": predicting / seconds,
    }


def _grid_ratios(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Speed and bytes of prediction, and of its bounds, over those of the fastest plain cache in each cell."""
    ratios = {}
    for ours in runs:
        best = fastest_plain(runs, ours["budget"], ours["link"])
        policy, _, known = ours["policy"].partition(":")
        if policy == PREDICTIVE and best is not None:
            name = f"{ours['budget']}_{ours['link']}" + (f"_knowing_{known}" if known else "")
            ratios[f"simulated_{name}"] = ours["tokens_per_second"] / best["tokens_per_second"]
            ratios[f"simulated_bytes_{name}"] = ours["bytes_per_token"] / best["bytes_per_token"]
    return ratios
