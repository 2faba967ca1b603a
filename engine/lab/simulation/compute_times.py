"""How long the computation of a token takes when no expert is missing, in the pieces that transfers run beside."""

from __future__ import annotations

from dataclasses import dataclass

PREDICTED_BEFORE_STEP = 0.3  # of what prediction costs, so much is asked before the step; the rest layer by layer


@dataclass(frozen=True)
class ComputeTimes:
    """Seconds. Of each MoE layer: up to its routing, what does not need the experts (a shared expert, run while
    they arrive), one expert; of each token: what follows the last layer (head, sampling). Where experts are
    predicted, also what that takes before each token and in each layer, once its routing is known.
    """

    before_routing: float
    beside_experts: float
    expert: float
    after_layers: float
    predicting_token: float = 0.0
    predicting_layer: float = 0.0

    def token(self, layers: int, top_k: int) -> float:
        """A token with everything resident and nothing predicted."""
        return layers * (self.before_routing + self.beside_experts + top_k * self.expert) + self.after_layers

    @classmethod
    def of_token(cls, seconds: float, layers: int, top_k: int, predicting: float = 0.0) -> ComputeTimes:
        """The same pieces from a resident token's time alone, in the proportions that `bench peers` finds for the
        built-in model (`parts_ms`): experts five eighths, the head an eighth, the rest attention, norms and routers.

        predicting: seconds that prediction costs the computing thread in a token.
        """
        layer = seconds / layers
        return cls(
            before_routing=0.23 * layer,
            beside_experts=0.02 * layer,
            expert=0.63 * layer / top_k,
            after_layers=0.12 * seconds,
            predicting_token=PREDICTED_BEFORE_STEP * predicting,
            predicting_layer=(1 - PREDICTED_BEFORE_STEP) * predicting / layers,
        )
