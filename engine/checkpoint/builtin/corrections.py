"""Low-rank corrections that training added to the experts' matrices, in the eight bits in which they ship."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MATRICES = ("gate", "up", "down")
LARGEST = 127


@dataclass(frozen=True)
class Corrections:
    """What is added to one matrix of every expert: the sum over ``r`` of ``scale[r] * outward[:, r] x inward[r]``.

    inward: int8 [layers, experts, rank, in]; outward: int8 [layers, experts, out, rank]; scale: float32
    [layers, experts, rank]. In and out are those of the expert's own matrix, with the neurons it keeps.
    """

    inward: np.ndarray
    outward: np.ndarray
    scale: np.ndarray

    def of(self, layer: int, expert: int) -> np.ndarray:
        """float32 [out, in]; summed in a fixed order, so that every machine gets the same bits."""
        inward, outward = self.inward[layer, expert], self.outward[layer, expert]
        total = np.zeros((len(outward), inward.shape[1]), np.float32)
        for rank, scale in enumerate(self.scale[layer, expert]):
            total += np.multiply.outer(outward[:, rank] * scale, inward[rank].astype(np.float32))
        return total


def quantise(inward: np.ndarray, outward: np.ndarray) -> Corrections:
    """Rounds float32 factors (shaped as in Corrections) to eight bits, each vector by its largest element."""
    inward_scale = np.abs(inward).max(-1) / LARGEST
    outward_scale = np.abs(outward).max(-2) / LARGEST
    return Corrections(
        _rounded(inward, inward_scale[..., None]),
        _rounded(outward, outward_scale[..., None, :]),
        (inward_scale * outward_scale).astype(np.float32),
    )


def _rounded(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.rint(values / np.where(scale > 0, scale, 1)).astype(np.int8)
