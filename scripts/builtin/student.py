"""The built-in model while it is being trained: the dense model's layers with experts carved out of each.

An expert keeps some of the dense layer's neurons and adds low-rank corrections to its three matrices. All experts
share the dense pre-activations, so that a token costs little more than in the dense model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

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
        self.register_buffer("uses", torch.zeros(experts), persistent=False)
        wide = {"gate": (hidden, intermediate), "up": (hidden, intermediate), "down": (intermediate, hidden)}
        self.inward, self.outward = nn.ParameterDict(), nn.ParameterDict()
        for name, (width_in, width_out) in wide.items():
            self.inward[name] = nn.Parameter(torch.randn(experts, rank, width_in) * width_in**-0.5)
            self.outward[name] = nn.Parameter(torch.zeros(experts, width_out, rank))

    def forward(self, x: torch.Tensor, dense: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [tokens, hidden] for x [tokens, hidden], and the load-balance loss of the layer.

        Routing as Mixtral's: softmax, the best two, renormalised.
        """
        probabilities = (x @ self.router.T).softmax(-1)
        top, chosen = probabilities.topk(TOP_K, dim=-1)
        weights = top / top.sum(-1, keepdim=True)
        gate, up = F.linear(x, dense["gate"]), F.linear(x, dense["up"])
        neurons = torch.zeros_like(gate) if self.shared is None else F.silu(gate) * up * self.shared
        routed = [(chosen == expert).nonzero(as_tuple=True) for expert in range(len(self.router))]
        # computed again on the way back: what an expert keeps for it would be ten times its inputs
        outputs = [
            checkpoint(self._expert, expert, x, gate, up, tokens, weights[tokens, place], use_reentrant=False)
            for expert, (tokens, place) in enumerate(routed)
        ]
        order = torch.cat([tokens for tokens, _ in routed])
        neurons = neurons.index_add(0, order, torch.cat([kept for kept, _ in outputs]))
        corrections = torch.zeros_like(x).index_add(0, order, torch.cat([extra for _, extra in outputs]))
        self.uses += torch.bincount(chosen.flatten(), minlength=len(self.uses))
        share = F.one_hot(chosen, len(self.router)).float().sum(1).mean(0) / TOP_K
        balance = len(self.router) * (share * probabilities.mean(0)).sum()
        return F.linear(neurons, dense["down"]) + corrections, balance

    def _expert(
        self,
        expert: int,
        x: torch.Tensor,
        gate: torch.Tensor,
        up: torch.Tensor,
        tokens: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For the expert's tokens: what goes into the dense `down` [.., intermediate], and what comes on top of it."""
        x = x[tokens]
        gate = gate[tokens] + self._corrected(expert, "gate", x)
        up = up[tokens] + self._corrected(expert, "up", x)
        weighted = F.silu(gate) * up * self.mask[expert] * weights[:, None]
        return weighted * self.gain[expert], self._corrected(expert, "down", weighted)

    def _corrected(self, expert: int, name: str, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.inward[name][expert].T) @ self.outward[name][expert].T


class Student(nn.Module):
    """All layers; `parts`: routers, masks, gains (and shared) as `calibrate` writes them."""

    def __init__(self, dense: DenseLayers, parts: Mapping[str, np.ndarray], rank: int) -> None:
        super().__init__()
        self._dense = dense
        tensor = torch.from_numpy
        self.layers = nn.ModuleList(
            ExpertLayer(
                tensor(parts["routers"][i]).float(),
                tensor(parts["masks"][i]),
                tensor(parts["gains"][i]).float(),
                tensor(parts["shared"][i]) if "shared" in parts else None,
                rank,
            )
            for i in range(len(dense.layers))
        )

    def streams(self, ids: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Residual stream and load-balance loss after each layer, for ids [rows, tokens]."""
        stream = F.embedding(ids, self._dense.embedding)
        for index, layer in enumerate(self.layers):
            stream, x = self._dense.attend(index, stream)
            out, balance = layer(x.flatten(0, 1), self._dense.layers[index])
            stream = stream + out.view_as(stream)
            yield stream, balance
