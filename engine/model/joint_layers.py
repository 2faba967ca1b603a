"""Several layers of a joint pass in one compiled call, as long as nobody has to be asked for their experts.

What `joined_layers` is for one chat's token: between two layers lie many lines of Python that ask for experts, sort
rows and count, while the processor's threads wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import get_num_threads

from engine.model.joined_layers import AddressedExperts, SlotLayout, Told
from engine.model.joint_product import SideBySide
from engine.model.joint_scratch import JointPositions, JointScratch
from engine.model.kernels.run_joint_layers import run_joint_layers


@dataclass(frozen=True, eq=False)
class AttentionArrays:
    """An attention block's weights. `biases` of query, key, value and output, `head_norms` of query and key: of size 0
    where the family has none. `inputs`: query, key and value.
    """

    norm: np.ndarray
    epsilon: float
    inputs: SideBySide
    output: SideBySide
    biases: tuple[np.ndarray, ...]
    head_norms: tuple[np.ndarray, ...]
    scale: float
    window: int


@dataclass(frozen=True, eq=False)
class ExpertsArrays:
    """A router's weights, and how its experts are to be read."""

    norm: np.ndarray
    epsilon: float
    router: np.ndarray
    renormalise: bool
    top_k: int
    activation: int
    layout: SlotLayout


@dataclass(frozen=True, eq=False)
class JointLayerArrays:
    """A layer's weights."""

    attention: AttentionArrays
    moe: ExpertsArrays


class RoutedChats:
    """What the routers of one pass over so many chats saw and chose, in memory that is used again by the next."""

    def __init__(self, layers: Sequence[JointLayerArrays], chats: int) -> None:
        (experts, width), top_k = layers[0].moe.router.shape, layers[0].moe.top_k
        self.x = np.empty((len(layers), chats, width), np.float32)
        self.ids = np.empty((len(layers), chats, top_k), np.int64)
        self.weights = np.empty((len(layers), chats, top_k), np.float32)
        self.touched = np.empty((len(layers), experts), np.int64)
        self.count = np.empty(len(layers), np.int64)
        views = [torch.from_numpy(array) for array in (self.x, self.ids, self.weights)]
        self.told: list[Told] = list(zip(*views, strict=True))

    def tell(self, provider: AddressedExperts, first: int, stop: int) -> None:
        """Of layers `first` to `stop`, which were computed."""
        for layer in range(first, stop):
            provider.computed(
                layer, self.told[layer : layer + 1], self.touched[layer : layer + 1, : self.count[layer]], None
            )


class JointLayers:
    """The layers of a model in which all are alike."""

    @staticmethod
    def supports(layers: Sequence[JointLayerArrays]) -> bool:
        """Whether they differ in nothing but their numbers, and a kernel reads their experts."""
        contiguous = all(array.flags.c_contiguous for layer in layers for array in _arrays(layer))
        return contiguous and len({_kind(layer) for layer in layers}) == 1 and layers[0].moe.layout.stored is not None

    def __init__(self, layers: Sequence[JointLayerArrays]) -> None:
        attentions, (attention, moe) = [layer.attention for layer in layers], (layers[0].attention, layers[0].moe)
        self._layers = layers  # their memory is read by address
        self._moe = moe
        self._routed = RoutedChats(layers, 0)
        self._weights = (
            np.array([[array.ctypes.data for array in _arrays(layer)] for layer in layers], np.int64),
            np.array([[len(array) for array in (*own.biases, *own.head_norms)] for own in attentions], np.int64),
            np.array([[layer.attention.epsilon, layer.moe.epsilon, layer.attention.scale] for layer in layers]),
            np.array([own.window for own in attentions], np.int64),
            np.array([[*own.inputs.addresses, *own.output.addresses] for own in attentions], np.int64),
            np.array([*attention.inputs.features, *attention.output.features], np.int64),
            np.array([*attention.inputs.columns, *attention.output.columns], np.int64),
            attention.inputs.stored,
            moe.layout.stored,
            moe.activation,
            moe.renormalise,
            np.array([moe.layout.gate_up_offset, moe.layout.down_offset], np.int64),
        )

    def routed(self, chats: int) -> RoutedChats:
        """Where a pass over so many chats leaves what its routers choose."""
        if self._routed.ids.shape[1] != chats:
            self._routed = RoutedChats(self._layers, chats)
        return self._routed

    def run(self, first: int, scratch: JointScratch, positions: JointPositions, addresses: np.ndarray) -> int:
        """`scratch.residual` goes through layer `first` and those after it, up to one of whose experts an address is
        missing: that is routed and returned. The number of layers when none is.
        """
        routed, pairs = self.routed(scratch.chats), scratch.chats * self._moe.top_k
        intermediate = self._moe.layout.intermediate
        return int(
            run_joint_layers(
                first,
                scratch.residual,
                positions.keys,
                positions.values,
                positions.contexts,
                positions.numbers,
                positions.cos,
                positions.sin,
                addresses,
                *self._weights,
                *(routed.x, routed.ids, routed.weights, routed.touched, routed.count),
                scratch.rows,
                scratch.x,
                scratch.projected,
                scratch.attended,
                scratch.added,
                scratch.named("probabilities", scratch.chats, addresses.shape[1]),
                scratch.named("both", pairs, 2 * intermediate),
                scratch.named("hidden", pairs, intermediate),
                scratch.named("outputs", pairs, scratch.x.shape[1]),
                scratch.named("row of pair", scratch.chats, self._moe.top_k, dtype=np.int64),
                get_num_threads(),
            )
        )


def _kind(layer: JointLayerArrays) -> tuple[Any, ...]:
    """What layers must share to be computed by one compiled loop; what some have and others do not is of length 0."""
    attention, moe = layer.attention, layer.moe
    dense = [(*part.features, part.stored.dtype) for part in (attention.inputs, attention.output)]
    stored = None if moe.layout.stored is None else moe.layout.stored.dtype
    slot = (stored, moe.layout.gate_up_offset, moe.layout.down_offset, moe.layout.intermediate)
    return *dense, *slot, moe.router.shape, moe.renormalise, moe.top_k, moe.activation


def _arrays(layer: JointLayerArrays) -> tuple[np.ndarray, ...]:
    """Those that `run_joint_layers` reads by address, in its order."""
    attention, moe = layer.attention, layer.moe
    return attention.norm, *attention.biases, *attention.head_norms, moe.norm, moe.router
