"""The recurrent predictor while it learns: a torch module over windows of recorded tokens.

A GRU (Cho et al., arXiv 1406.1078) reads each token together with what the token before did: its routing and its last
residual stream. Its state and the token's own embedding give the routing of this token and of those after it.
`recurrent.py` computes the same, one token at a time, without torch modules.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from engine.routing.predictors.network import PredictorNetwork
from engine.routing.shape import RoutingShape
from engine.routing.training.windows import Batch


@dataclass(frozen=True)
class RecurrentSizes:
    """Widths. `horizon`: tokens predicted, this one included; `hidden_width`: of the model's residual stream, 0 to
    do without; `dropout`: while training."""

    horizon: int = 2
    token_width: int = 96
    state_width: int = 384
    head_width: int = 384
    hidden_width: int = 0
    dropout: float = 0.2

    def to_dict(self) -> dict[str, float]:
        """Plain types, ready for JSON."""
        return asdict(self)


class RecurrentNetwork(PredictorNetwork):
    """`model_embedding`: float [vocabulary, width], the model's own, frozen; a projection of it is added to what is
    learnt for each token, so that tokens never seen are like those the model takes for alike."""

    hidden_mean: torch.Tensor
    hidden_scale: torch.Tensor
    model_embedding: torch.Tensor

    def __init__(self, shape: RoutingShape, sizes: RecurrentSizes, model_embedding: torch.Tensor | None = None) -> None:
        super().__init__()
        self.shape, self.sizes = shape, sizes
        self.horizon, self.hidden_width = sizes.horizon, sizes.hidden_width
        width, state, head = sizes.token_width, sizes.state_width, sizes.head_width
        self.token = nn.Embedding(shape.vocabulary, width)
        nn.init.normal_(self.token.weight, std=0.02)
        self.projection: nn.Linear | None = None
        if model_embedding is not None:
            scaled = model_embedding.float() / model_embedding.float().std()
            self.register_buffer("model_embedding", scaled, persistent=False)
            self.projection = nn.Linear(scaled.shape[1], width, bias=False)
        self.register_buffer("hidden_mean", torch.zeros(sizes.hidden_width))
        self.register_buffer("hidden_scale", torch.ones(sizes.hidden_width))
        self.gru = nn.GRU(width + shape.outputs + sizes.hidden_width, state, batch_first=True)
        self.mix = nn.Linear(state + width, 2 * head)
        self.this = nn.Linear(head + width, shape.outputs)
        self.later = nn.Linear(head, (sizes.horizon - 1) * shape.outputs)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """float32 [..., token width]: learnt for the token, plus what the model's own embedding says."""
        learnt = self.token(tokens)
        if self.projection is None:
            return learnt
        return learnt + self.projection(self.model_embedding[tokens])

    def standardise(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Makes the residual stream's channels comparable: a few of them are a hundred times the others."""
        self.hidden_mean = mean.float()
        self.hidden_scale = 1 / deviation.float().clamp(min=1e-2)

    @torch.no_grad()
    def rescale(self, deviation: torch.Tensor) -> None:
        """The same for a network that has learnt: what it says stays as it is."""
        scale = 1 / deviation.float().clamp(min=1e-2)
        weights = cast(torch.Tensor, self.gru.weight_ih_l0)
        weights[:, -len(scale) :] *= self.hidden_scale / scale
        self.hidden_scale = scale

    def forward(self, batch: Batch) -> torch.Tensor:
        """Log odds, float32 [windows, tokens, horizon, layers, experts]."""
        drop = self.sizes.dropout
        token = F.dropout(self.embed(batch.tokens), drop / 2, self.training)
        inputs = [token, F.dropout(batch.before, drop / 2, self.training)]
        if self.sizes.hidden_width:
            standard = (batch.hidden - self.hidden_mean) * self.hidden_scale
            present = batch.has_hidden[..., None].float()
            # now and then without it altogether, as it is where nobody hands it over
            inputs.append(standard * F.dropout(present, drop / 2, self.training).clamp(max=1))
        state = F.dropout(self.gru(torch.cat(inputs, -1))[0], drop, self.training)
        mixed = F.dropout(F.relu(self.mix(torch.cat([state, token], -1))), drop, self.training)
        this, later = mixed.chunk(2, -1)
        rows = [self.this(torch.cat([this, token], -1)), self.later(later)]
        return torch.cat(rows, -1).unflatten(-1, (self.sizes.horizon, self.shape.layers, self.shape.experts))
