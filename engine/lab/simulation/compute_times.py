"""How long the computation of a token takes when no expert is missing, in the pieces that transfers run beside."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ComputeTimes:
    """Seconds. Of each MoE layer: up to its routing, what does not need the experts (a shared expert, run while
    they arrive), one expert; of each token: what follows the last layer (head, sampling).
    """

    before_routing: float
    beside_experts: float
    expert: float
    after_layers: float

    def token(self, layers: int, top_k: int) -> float:
        """A token with everything resident."""
        return layers * (self.before_routing + self.beside_experts + top_k * self.expert) + self.after_layers

    @classmethod
    def of_token(cls, seconds: float, layers: int, top_k: int) -> ComputeTimes:
        """The same pieces from a resident token's time alone, in the proportions of the built-in model: experts take
        half, attention and norms a third, the rest is the head's.
        """
        layer = seconds / layers
        return cls(0.33 * layer, 0.07 * layer, 0.5 * layer / top_k, 0.1 * seconds)
