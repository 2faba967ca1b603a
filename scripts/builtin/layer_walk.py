"""The dense model layer by layer over many passages at once: what each feed-forward layer gets and gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from scripts.builtin.dense_forward import DenseForward, load_tokens, rms_norm

ROWS = 16  # passages of one pass


@dataclass(frozen=True)
class Texts:
    """Token ids [rows, tokens] of blocks of passages; `kinds` are the ranges of tokens of each kind of text."""

    blocks: list[torch.Tensor]
    kinds: list[slice]

    @classmethod
    def read(cls, files: Sequence[Path]) -> Texts:
        """A file for each kind."""
        texts = [torch.from_numpy(load_tokens(file)).long() for file in files]
        ends = np.cumsum([text.numel() for text in texts]).tolist()
        kinds = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        return cls([rows for text in texts for rows in text.split(ROWS)], kinds)

    @property
    def tokens(self) -> int:
        return self.kinds[-1].stop


@dataclass(frozen=True)
class LayerPass:
    """One layer over all tokens: x [tokens, hidden] goes in; gate and up [tokens, intermediate] are pre-activations;
    output [tokens, hidden] comes out; stream_length [tokens, 1] is the residual stream's, the output added.
    """

    index: int
    weights: dict[str, torch.Tensor]
    x: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    output: torch.Tensor
    stream_length: torch.Tensor


def walk_layers(texts: Texts) -> Iterator[LayerPass]:
    """Every layer of the dense model in turn, each on the dense model's own streams."""
    model = DenseForward(ROWS, max(block.shape[1] for block in texts.blocks))
    streams = [F.embedding(block, model.embedding) for block in texts.blocks]
    for index, weights in enumerate(model.layers):
        with torch.no_grad():
            walked = _pass(model, index, weights, streams)
        yield walked


def _pass(model: DenseForward, index: int, weights: dict[str, torch.Tensor], streams: list[torch.Tensor]) -> LayerPass:
    """Advances the streams by a layer."""
    for stream in streams:
        stream += model.attention(index, rms_norm(stream, weights["input_layernorm"], model.eps), 0)
    x = torch.cat([rms_norm(s, weights["post_attention_layernorm"], model.eps).flatten(0, 1) for s in streams])
    gate, up = F.linear(x, weights["gate"]), F.linear(x, weights["up"])
    output = F.linear(F.silu(gate) * up, weights["down"])
    for stream, added in zip(streams, output.split([s[..., 0].numel() for s in streams]), strict=True):
        stream += added.view_as(stream)
    length = torch.cat([stream.flatten(0, 1) for stream in streams]).norm(dim=-1, keepdim=True)
    return LayerPass(index, weights, x, gate, up, output, length)
