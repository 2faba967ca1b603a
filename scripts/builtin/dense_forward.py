"""A plain-torch forward pass of the dense model, for sampling and for looking inside it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from engine.checkpoint.builtin.dense import DenseWeights


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class DenseForward:
    """fp32 weights and a key/value cache for ``rows`` sequences that all stand at the same position."""

    def __init__(self, rows: int, context: int, weights: DenseWeights | None = None) -> None:
        w = weights or DenseWeights()
        tensor = torch.from_numpy
        self.eps, self.heads, self.kv_heads = w.rms_norm_eps, w.heads, w.kv_heads
        self.head_dim = w.hidden_size // w.heads
        self.embedding, self.final_norm = tensor(w.embedding()), tensor(w.final_norm())
        self.layers = [
            {k: tensor(v) for part in (w.attention(i), w.norms(i), w.feed_forward(i)) for k, v in part.items()}
            for i in range(w.layers)
        ]
        for layer in self.layers:
            layer["qkv"] = torch.cat([layer.pop("q_proj"), layer.pop("k_proj"), layer.pop("v_proj")])
        frequencies = w.rope_theta ** -(torch.arange(0, self.head_dim, 2).float() / self.head_dim)
        angles = torch.outer(torch.arange(context).float(), frequencies).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()
        shape = (w.layers, rows, self.kv_heads, context, self.head_dim)
        self.keys, self.values = torch.empty(shape), torch.empty(shape)

    @torch.inference_mode()
    def hidden(self, ids: torch.Tensor, position: int) -> torch.Tensor:
        """Final hidden states [rows, tokens, hidden] of ``ids`` [rows, tokens] that begin at ``position``."""
        x = F.embedding(ids, self.embedding)
        for index, layer in enumerate(self.layers):
            x = x + self.attention(index, rms_norm(x, layer["input_layernorm"], self.eps), position)
            normed = rms_norm(x, layer["post_attention_layernorm"], self.eps)
            x = x + self.dense_feed_forward(index, normed)
        return rms_norm(x, self.final_norm, self.eps)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return (self.embedding @ hidden.T).T  # the quicker order here

    def dense_feed_forward(self, index: int, x: torch.Tensor) -> torch.Tensor:
        layer = self.layers[index]
        return F.linear(F.silu(F.linear(x, layer["gate"])) * F.linear(x, layer["up"]), layer["down"])

    def attention(self, index: int, x: torch.Tensor, position: int) -> torch.Tensor:
        rows, tokens, _ = x.shape
        end = position + tokens
        parts = F.linear(x, self.layers[index]["qkv"]).view(rows, tokens, -1, self.head_dim).transpose(1, 2)
        q, k, v = parts.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        cos, sin = self.cos[position:end], self.sin[position:end]
        self.keys[index, :rows, :, position:end] = rotate(k, cos, sin)
        self.values[index, :rows, :, position:end] = v
        # Query heads of one group share keys: folding them into the token axis avoids repeating the cache.
        group = self.heads // self.kv_heads
        q = rotate(q, cos, sin).reshape(rows * self.kv_heads, group * tokens, self.head_dim)
        k = self.keys[index, :rows].flatten(0, 1)[:, :end]
        v = self.values[index, :rows].flatten(0, 1)[:, :end]
        scores = torch.bmm(q, k.transpose(1, 2)) * self.head_dim**-0.5
        if tokens > 1:
            steps = torch.arange(position, end).repeat(group)
            scores.masked_fill_(torch.arange(end)[None, :] > steps[:, None], -torch.inf)
        mixed = torch.bmm(scores.softmax(-1), v).view(rows, self.heads, tokens, self.head_dim)
        return F.linear(mixed.transpose(1, 2).reshape(rows, tokens, -1), self.layers[index]["o_proj"])


def load_tokens(path: str) -> np.ndarray:
    """Token ids saved by the sampler or the collector: int32 [rows, tokens]."""
    return np.load(path)["tokens"]
