"""What a model would be like on this machine, known before it is downloaded or loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.settings import Settings
from app.terminal_progress import Progress
from engine.errors import EngineError
from engine.hardware.memory_plan import MemoryPlan, format_bytes

if TYPE_CHECKING:
    from engine.checkpoint.estimate import ModelEstimate


@dataclass(frozen=True)
class ModelOffer:
    """A model's facts and the memory plan it would get; `error` says why there can be no plan."""

    estimate: ModelEstimate
    context_length: int | None
    plan: MemoryPlan | None
    error: EngineError | None

    @property
    def name(self) -> str:
        return self.estimate.name

    @property
    def is_here(self) -> bool:
        return self.estimate.is_here

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What it is: label and words."""
        one, index = self.estimate, self.estimate.index
        rows = [
            ("architecture", one.architecture),
            ("parameters", f"{_count(one.total_parameters)} in all, {_count(one.active_parameters)} for a token"),
            ("weights", format_bytes(index.total_bytes)),
            (
                "experts",
                f"{len(index.experts_per_layer)} layers of {max(index.experts_per_layer)}, "
                f"{index.top_k} for a token, {format_bytes(index.expert_bytes)} each",
            ),
        ]
        return [*rows, ("on this machine", self._where())]

    @property
    def sentences(self) -> list[str]:
        """Will it fit, and how: one sentence a decision."""
        if self.error is not None:
            return [f"{self.error.cause} {self.error.remedy}"]
        assert self.plan is not None and self.context_length is not None
        plan, origin = self.plan, "file headers" if self.estimate.from_headers else "the config alone: the hub is away"
        return [
            f"{_verdict(plan)} Reckoned from {origin}, with all parameters, not only the active ones.",
            f"The context holds {self.context_length} tokens, which takes {format_bytes(plan.near_bytes_kv)}.",
            *plan.reasons,
            *plan.warnings,
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        one, download = self.estimate, self.estimate.download
        return {
            "name": one.name,
            "architecture": one.architecture,
            "total_parameters": one.total_parameters,
            "active_parameters": one.active_parameters,
            "bytes": one.index.total_bytes,
            "experts_per_layer": max(one.index.experts_per_layer),
            "experts_per_token": one.index.top_k,
            "moe_layers": len(one.index.experts_per_layer),
            "from_headers": one.from_headers,
            "is_here": self.is_here,
            "download_bytes": download.missing_bytes if download else 0 if self.is_here else None,
            "context_length": self.context_length,
            "plan": self.plan and self.plan.to_dict(),
            "sentences": self.sentences,
            "error": self.error and {"cause": self.error.cause, "remedy": self.error.remedy},
        }

    def _where(self) -> str:
        download = self.estimate.download
        if self.is_here:
            return str(download.repository.snapshot if download else self.estimate.folder)
        if download is None:
            return "only its config"
        if download.here_bytes * 100 < download.total_bytes:
            return f"not yet; the download is {format_bytes(download.total_bytes)}"
        return (
            f"{format_bytes(download.here_bytes)} of {format_bytes(download.total_bytes)}, the rest is to be downloaded"
        )


def make_offer(name: str, settings: Settings, on_progress: Progress, held_bytes: int = 0) -> ModelOffer:
    """Asks this machine, or else the hub. `held_bytes`: what a model that would be closed first holds now.

    Raises what keeps the model from being run at all, on any machine: the errors of `estimate`.
    """
    from engine.checkpoint.estimate import estimate
    from engine.loading import context_for, require_supported
    from engine.placement import place

    placement = place(settings.device, settings.link)
    found = estimate(name, on_progress, placement.card is not None)
    context_length = None
    try:
        require_supported(settings.precision)
        found = found.at_precision(settings.precision)
        context_length = context_for(found.config, settings.context_length)
        plan = placement.plan(found.footprint(context_length), settings.budget, settings.link, held_bytes)
    except EngineError as error:
        return ModelOffer(found, context_length, None, error)
    return ModelOffer(found, context_length, plan, None)


def _verdict(plan: MemoryPlan) -> str:
    if plan.slots >= plan.experts_total:
        return f"It fits whole, in {format_bytes(plan.near_bytes_total)}."
    return (
        f"It runs in {format_bytes(plan.near_bytes_total)}, with {plan.expert_share:.0%} of its experts in memory and "
        "the others read when they are needed."
    )


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} billion" if parameters >= 1e8 else f"{parameters / 1e6:.1f} million"
