"""How much routing one model has: what every predictor, metric and file of traces must agree on."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class RoutingShape:
    """MoE layers, experts of a layer, experts a token uses in a layer, and how many token ids there are."""

    layers: int
    experts: int
    top_k: int
    vocabulary: int

    @property
    def outputs(self) -> int:
        """Experts of all layers."""
        return self.layers * self.experts

    def to_dict(self) -> dict[str, int]:
        """Plain types, ready for JSON."""
        return asdict(self)
