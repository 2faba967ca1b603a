"""Several layers of a token's step in one compiled call, as long as nobody has to be asked for their experts.

Between two layers the processor's caches hold weights and little else, so that the few lines of Python that ask for a
layer's experts cost several times what they do in a loop. Where an expert's address is known beforehand, nothing is
asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

Told = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What a router saw [1, width], the ids it chose and their weights [1, top_k]."""
RowsOfLayer = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The same as arrays, without the row: [width], [top_k], [top_k]."""


@runtime_checkable
class AddressedExperts(Protocol):
    """An ExpertProvider that may be able to say beforehand where experts lie."""

    def addresses(self) -> np.ndarray | None:
        """int64 [layers, experts], for one decoding step: of the first byte of each expert that stays where it is
        until another one is acquired or a layer is `routed`, 0 for all others; kept up to date meanwhile. None: acquire
        every layer.
        """

    def pauses(self) -> np.ndarray:
        """bool [layers], for the same step: the layers of which `routed` wants to be told."""

    def routed(self, layer: int, rows: RowsOfLayer) -> None:
        """`layer`, at which the step pauses, has been routed, and all its experts have addresses and keep them."""

    def computed(self, first: int, told: Sequence[Told], experts: np.ndarray, weights: np.ndarray | None) -> None:
        """Layers `first`, `first` + 1, ... were computed with experts at their addresses, not acquired: what `observe`
        would have been told of each of them, their distinct ids, int64 [layers, any], and, of a step that reads one
        chat's token, the weights that go with them, float32. The next step uses the memory again.
        """


class RoutedRows:
    """What the routers of one step saw and chose, in memory that is used again by the next."""

    def __init__(self, layers: int, width: int, top_k: int) -> None:
        self.x = np.empty((layers, width), np.float32)
        self.ids = np.empty((layers, top_k), np.int64)
        self.weights = np.empty((layers, top_k), np.float32)
        views = [torch.from_numpy(array)[:, None] for array in (self.x, self.ids, self.weights)]
        self.told: list[Told] = list(zip(*views, strict=True))
        self.of_layer: list[RowsOfLayer] = list(zip(self.x, self.ids, self.weights, strict=True))


@dataclass(frozen=True, eq=False)
class SlotLayout:
    """Where an expert's parameters lie within its slot. `stored`: an array of their kernel dtype; None where no kernel
    reads them."""

    stored: np.ndarray | None
    gate_up_offset: int
    down_offset: int
    intermediate: int


@dataclass(frozen=True, eq=False)
class LayerArrays:
    """A layer's weights as the kernels take them: in the order of `attention_block`'s and `route`'s arguments."""

    attention: tuple[Any, ...]
    router: tuple[Any, ...]
    activation: int
    layout: SlotLayout


class JoinedLayers:
    """The layers of a model in which all are alike. `scratch`: `attention_block`'s last arguments."""

    @staticmethod
    def supports(layers: Sequence[LayerArrays]) -> bool:
        """Whether they differ in nothing but their numbers, and a kernel reads their experts."""
        contiguous = all(array.flags.c_contiguous for layer in layers for array in _arrays(layer))
        return contiguous and len({_kind(layer) for layer in layers}) == 1 and layers[0].layout.stored is not None

    def __init__(self, layers: Sequence[LayerArrays], rows: RoutedRows, scratch: tuple[np.ndarray, ...]) -> None:
        from engine.model.kernels.run_layers import run_layers

        first, layout, top_k = layers[0], layers[0].layout, rows.ids.shape[1]
        experts, width = first.router[2].shape
        kv_heads, context, _ = first.attention[14].shape
        numbers = [[layer.attention[1], layer.router[1], layer.attention[12]] for layer in layers]
        self._kernel = run_layers
        self._layers = layers  # their memory is read by address
        self._weights = (
            np.array([[array.ctypes.data for array in _arrays(layer)] for layer in layers], np.int64),
            np.array([[len(array) for array in layer.attention[6:12]] for layer in layers], np.int64),
            np.array(numbers, np.float64),
            np.array([layer.attention[13] for layer in layers], np.int64),
            first.attention[2],
            layout.stored,
            kv_heads,
            context,
            first.activation,
            first.router[3],
            np.array([layout.gate_up_offset, layout.down_offset], np.int64),
        )
        self._scratch = (
            *scratch,
            np.empty(top_k, np.int64),
            np.arange(top_k),
            np.zeros(top_k, np.int64),
            np.empty((top_k, layout.intermediate), np.float32),
            np.empty((top_k, width), np.float32),
            np.empty(experts, np.float32),
        )
        self._rows = (rows.x, rows.ids, rows.weights)

    def run(
        self,
        first: int,
        is_routed: bool,
        pauses: np.ndarray,
        residual: np.ndarray,
        position: int,
        cos: np.ndarray,
        sin: np.ndarray,
        addresses: np.ndarray,
    ) -> tuple[int, bool]:
        """`residual` goes through layer `first` (`is_routed`: only through its experts) and those after it, up to one
        that pauses or of whose experts an address is missing: that is routed and returned; the number of layers when
        there is none. Also whether an address is missing.
        """
        arguments = (first, is_routed, pauses, residual, position, cos, sin, addresses)
        reached = int(self._kernel(*arguments, *self._weights, *self._rows, *self._scratch))
        return (reached, False) if reached >= 0 else (~reached, True)


def _kind(layer: LayerArrays) -> tuple[Any, ...]:
    """What layers must share to be computed by one compiled loop; what some have and others do not is of length 0."""
    matrices = (*layer.attention[2:6], *layer.attention[14:16], layer.router[2])
    layout = layer.layout
    stored = None if layout.stored is None else layout.stored.dtype
    slot = (stored, layout.gate_up_offset, layout.down_offset, layout.intermediate)
    return layer.activation, layer.router[3], *slot, *((array.shape, array.dtype) for array in matrices)


def _arrays(layer: LayerArrays) -> tuple[np.ndarray, ...]:
    """Those that `run_layers` reads by address, in its order."""
    attention, router = layer.attention, layer.router
    return attention[0], *attention[2:12], *attention[14:16], router[0], router[2]
