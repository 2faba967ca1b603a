"""The built-in model while it is being trained: the dense model's layers with experts carved out of each.

An expert keeps some of the dense layer's neurons and adds low-rank corrections to its three matrices. All experts
share the dense pre-activations, so that a token costs little more than in the dense model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from engine.checkpoint.builtin.dense import DenseWeights
from scripts.builtin.calibrate import TOP_K
from scripts.builtin.dense_forward import rms_norm, rotate


class DenseLayers:
    """The frozen dense model: fp32 weights and a causal forward pass that gradients flow through."""

    def __init__(self, context: int) -> None:
        w, tensor = DenseWeights(), torch.from_numpy
        self.eps, self.heads, self.kv_heads = w.rms_norm_eps, w.heads, w.kv_heads
        self.hidden_size, self.intermediate_size = w.hidden_size, w.intermediate_size
        self.head_dim = w.hidden_size // w.heads
        self.embedding, self.final_norm = tensor(w.embedding()), tensor(w.final_norm())
        self.layers = [
            {k: tensor(v) for part in (w.attention(i), w.norms(i), w.feed_forward(i)) for k, v in part.items()}
            for i in range(w.layers)
        ]
        frequencies = w.rope_theta ** -(torch.arange(0, self.head_dim, 2).float() / self.head_dim)
        angles = torch.outer(torch.arange(context).float(), frequencies).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def attend(self, index: int, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual stream [rows, tokens, hidden] after attention, and the feed-forward's input."""
        layer = self.layers[index]
        rows, tokens, _ = stream.shape
        x = rms_norm(stream, layer["input_layernorm"], self.eps)
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        q, k, v = (
            F.linear(x, layer[name]).view(rows, tokens, -1, self.head_dim).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True
        )
        stream = stream + F.linear(mixed.transpose(1, 2).reshape(rows, tokens, -1), layer["o_proj"])
        return stream, rms_norm(stream, layer["post_attention_layernorm"], self.eps)

    def feed_forward(self, index: int, x: torch.Tensor) -> torch.Tensor:
        layer = self.layers[index]
        return F.linear(F.silu(F.linear(x, layer["gate"])) * F.linear(x, layer["up"]), layer["down"])

    @torch.no_grad()
    def streams(self, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """Residual stream after each layer, for ids [rows, tokens]."""
        stream = F.embedding(ids, self.embedding)
        for index in range(len(self.layers)):
            stream, x = self.attend(index, stream)
            stream = stream + self.feed_forward(index, x)
            yield stream

    def logits(self, stream: torch.Tensor) -> torch.Tensor:
        """[..., vocab] from the last layer's stream [..., hidden]."""
        return rms_norm(stream, self.final_norm, self.eps) @ self.embedding.T


class ExpertLayer(nn.Module):
    """Router [experts, hidden], gains [experts, intermediate] and low-rank corrections of one layer's experts.

    `mask` bool [experts, intermediate] says which neurons an expert keeps, `shared` bool [intermediate] which are
    computed for every token with weight one, outside of the experts.
    """

    def __init__(
        self, router: torch.Tensor, mask: torch.Tensor, gain: torch.Tensor, shared: torch.Tensor | None, rank: int
    ) -> None:
        super().__init__()
        experts, intermediate = mask.shape
        hidden = router.shape[1]
        self.router, self.gain = nn.Parameter(router.clone()), nn.Parameter(gain.clone())
        self.register_buffer("mask", mask.float())
        self.register_buffer("shared", None if shared is None else shared.float())
        self.chosen = torch.empty(0, TOP_K, dtype=torch.long)  # the experts of the last pass, [tokens, top k]
        wide = {"gate": (hidden, intermediate), "up": (hidden, intermediate), "down": (intermediate, hidden)}
        self.inward, self.outward = nn.ParameterDict(), nn.ParameterDict()
        for name, (width_in, width_out) in wide.items():
            self.inward[name] = nn.Parameter(torch.randn(experts, rank, width_in) * width_in**-0.5)
            self.outward[name] = nn.Parameter(torch.zeros(experts, width_out, rank))

    def forward(self, x: torch.Tensor, dense: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [tokens, hidden] for x [tokens, hidden], and the load-balance loss of the layer."""
        gate, up = F.linear(x, dense["gate"]), F.linear(x, dense["up"])
        neurons, added, balance = self.mix(x, gate, up)
        return F.linear(neurons, dense["down"]) + added, balance

    def mix(
        self, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From x [tokens, hidden] and the dense pre-activations [tokens, intermediate]: what goes into the dense
        `down` [tokens, intermediate], what is added to its output [tokens, hidden], the load-balance loss.

        Routing as Mixtral's: softmax, the best two, renormalised. What differs between experts goes through thin
        products over all of them with zeros for those that a token does not use: no gathering, few large operations.
        """
        probabilities = (x @ self.router.T).softmax(-1)
        top, chosen = probabilities.topk(TOP_K, dim=-1)
        used = F.one_hot(chosen, len(self.router)).float()  # [tokens, top k, experts]
        weights = used * (top / top.sum(-1, keepdim=True))[..., None]
        corrected = F.silu(gate[:, None] + self._corrected("gate", x, used))
        corrected = corrected * (up[:, None] + self._corrected("up", x, used))
        neurons = (corrected * (weights @ (self.mask * self.gain))).sum(1)
        if self.shared is not None:
            neurons = neurons + F.silu(gate) * up * self.shared
        inward = corrected @ (self.inward["down"] * self.mask[:, None]).flatten(0, 1).T
        inward = (inward.unflatten(-1, self.inward["down"].shape[:2]) * weights[..., None]).sum(1)
        self.chosen = chosen
        share = used.sum(1).mean(0) / TOP_K
        balance = len(self.router) * (share * probabilities.mean(0)).sum()
        return neurons, inward.flatten(1) @ _columns(self.outward["down"]), balance

    def _corrected(self, name: str, x: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        """What a token's experts add to a dense pre-activation: [tokens, top k, intermediate]."""
        inward = (x @ self.inward[name].flatten(0, 1).T).unflatten(-1, self.inward[name].shape[:2])
        return (inward[:, None] * used[..., None]).flatten(2) @ _columns(self.outward[name])


def _columns(outward: torch.Tensor) -> torch.Tensor:
    """[experts x rank, out] of [experts, out, rank]."""
    return outward.transpose(1, 2).flatten(0, 1)


class Student(nn.Module):
    """The dense model with ExpertLayers in place of its feed-forward layers."""

    def __init__(self, dense: DenseLayers, layers: nn.ModuleList) -> None:
        super().__init__()
        self._dense, self.layers = dense, layers

    def streams(self, ids: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Residual stream and load-balance loss after each layer, for ids [rows, tokens]."""
        stream = F.embedding(ids, self._dense.embedding)
        for index, layer in enumerate(self.layers):
            stream, x = self._dense.attend(index, stream)
            out, balance = layer(x.flatten(0, 1), self._dense.layers[index])
            stream = stream + out.view_as(stream)
            yield stream, balance


@dataclass
class Trained:
    """Layers with the parts they were made from and how they came about, as far as that is known."""

    layers: nn.ModuleList
    parts: dict[str, np.ndarray]
    history: dict[str, Any]

    @classmethod
    def load(cls, path: Path, rank: int = 0) -> Trained:
        """From what `calibrate` wrote (.npz; untrained corrections of `rank`), or what was saved here (.pt)."""
        if path.suffix == ".npz":
            parts = dict(np.load(path))
            return cls(_make_layers(parts, rank), parts, {"calibration_tokens": int(parts["tokens"])})
        saved = torch.load(path, weights_only=False)
        trained = cls(_make_layers(saved["parts"], saved["rank"]), saved["parts"], saved["history"])
        trained.layers.load_state_dict(saved["layers"])
        return trained

    @property
    def rank(self) -> int:
        return self.layers[0].inward["gate"].shape[1]

    def save(self, path: Path, **more: Any) -> None:
        """Replaces the file as a whole; `more` goes into it beside the layers."""
        content = {"layers": self.layers.state_dict(), "parts": self.parts, "rank": self.rank, "history": self.history}
        partial = path.with_suffix(".partial")
        torch.save(content | more, partial)
        os.replace(partial, path)


def _make_layers(parts: Mapping[str, np.ndarray], rank: int) -> nn.ModuleList:
    tensor = torch.from_numpy
    return nn.ModuleList(
        ExpertLayer(
            tensor(router).float(), tensor(mask), tensor(gain).float(), tensor(shared) if shared.any() else None, rank
        )
        for router, mask, gain, shared in zip(
            parts["routers"], parts["masks"], parts["gains"], parts["shared"], strict=True
        )
    )
