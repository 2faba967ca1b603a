"""What deeper layers' routers say of the residual stream that an earlier layer's router saw."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.errors import UnsupportedModel
from engine.model.fast_support import is_moe, unsupported_reason


class RouterLookahead:
    """Routers of MoE layers l+1, l+2, ... applied in layer l.

    A router sees x_l = residual / rms * w_l, with its own layer's norm weight w_l. A deeper one would see
    x_l / w_l * w_{l+d}: so R_l * w_l is kept for every layer, in one array, beside 1 / w_l.

    routers: float32 [layers, experts, width]; inverse_norms: float32 [layers, width].
    """

    @staticmethod
    def supports(model: Any) -> str | None:
        """None when `model` is of a family whose routers and norms are known, else the reason in words."""
        reason = unsupported_reason(model)
        if reason is None and len({_experts_of(layer) for layer in _moe_layers(model)}) > 1:
            return "Its layers have different numbers of experts."
        return reason

    def __init__(self, model: Any) -> None:
        """Raises UnsupportedModel where `supports` gives a reason."""
        reason = self.supports(model)
        if reason is not None:
            raise UnsupportedModel(
                f"The routers of deeper layers cannot be asked ahead. {reason}", "Record without looking ahead."
            )
        layers = _moe_layers(model)
        norms = np.stack([_fp32(layer.post_attention_layernorm.weight) for layer in layers])
        self.routers = np.stack([_fp32(layer.mlp.gate.weight) for layer in layers]) * norms[:, None]
        self.inverse_norms = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms != 0)

    @property
    def layers(self) -> int:
        return int(self.routers.shape[0])

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return int(self.routers.shape[2])

    @property
    def experts(self) -> int:
        """Experts of each layer."""
        return int(self.routers.shape[1])

    def probabilities(self, layer: int, x: np.ndarray, distances: int) -> np.ndarray:
        """float32 [rows, d, experts] for layers layer+1 .. layer+d, where d is at most `distances` and ends with the
        model; x float32 [rows, width] is what the router of `layer` saw.
        """
        deeper = self.routers[layer + 1 : layer + 1 + distances]
        logits = (x * self.inverse_norms[layer]) @ deeper.reshape(-1, x.shape[1]).T
        logits = logits.reshape(len(x), len(deeper), self.experts)
        logits -= logits.max(axis=-1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=-1, keepdims=True)
        return logits


def _moe_layers(model: Any) -> list[Any]:
    return [layer for layer in model.model.layers if is_moe(layer)]


def _experts_of(layer: Any) -> int:
    return int(layer.mlp.gate.weight.shape[0])


def _fp32(weight: Any) -> np.ndarray:
    return weight.detach().float().numpy()
