"""The paper's predictor (arXiv 2410.17954): a small T5 over token ids alone, for comparison.

T5-small's shape with narrow streams (d_model 32, d_ff 2048, 6 + 6 layers, 8 heads of 64), randomly initialised; the
encoder reads the prompt's ids, the decoder the answer's, and one linear head on the decoder gives all layers' experts
of the current token. It says nothing of later tokens, and needs the whole prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import T5Config, T5Model
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from engine.routing.logistic import sigmoid
from engine.routing.predictors.interface import RoutingPredictor
from engine.routing.predictors.network import PredictorNetwork
from engine.routing.predictors.weights_file import StoredPredictor
from engine.routing.shape import RoutingShape
from engine.routing.traces.trace import RoutingTrace
from engine.routing.training.windows import Batch

KIND = "token-transformer"
PROMPT_TOKENS = 256

PAPER_SIZES = {"d_model": 32, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8, "d_kv": 64}


class TokenTransformer(PredictorNetwork):
    """`sizes`: of the T5 configuration; the id after the vocabulary's last ends every prompt, so that none is empty."""

    horizon = 1
    listwise = False  # the paper's loss
    prompt_tokens = PROMPT_TOKENS

    def __init__(self, shape: RoutingShape, sizes: Mapping[str, Any] = PAPER_SIZES) -> None:
        super().__init__()
        self.shape, self.sizes = shape, dict(sizes)
        self.end_of_prompt = shape.vocabulary
        self.t5 = T5Model(T5Config(vocab_size=shape.vocabulary + 1, **self.sizes))
        self.head = nn.Linear(self.t5.config.d_model, shape.outputs, bias=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Log odds, float32 [windows, tokens, 1, layers, experts]."""
        end = torch.full((len(batch.prompt), 1), self.end_of_prompt)
        out = self.t5(
            input_ids=torch.cat([batch.prompt, end], 1),
            attention_mask=torch.cat([batch.in_prompt, torch.ones_like(end, dtype=torch.bool)], 1).long(),
            decoder_input_ids=batch.tokens,
            use_cache=False,
        )
        return self._odds(out.last_hidden_state)

    def encode(self, prompt: list[int]) -> torch.Tensor:
        """The encoder's output for a prompt, [1, tokens, width]."""
        ids = torch.tensor([[*prompt[-self.prompt_tokens :], self.end_of_prompt]])
        return self.t5.encoder(input_ids=ids).last_hidden_state

    def decode(self, tokens: list[int], encoded: torch.Tensor, cache: EncoderDecoderCache) -> torch.Tensor:
        """Log odds [1, tokens, 1, layers, experts] of tokens that follow what is in the cache; it grows by them."""
        out = self.t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            decoder_input_ids=torch.tensor([tokens]),
            past_key_values=cache,
            use_cache=True,
        )
        return self._odds(out.last_hidden_state)

    def _odds(self, stream: torch.Tensor) -> torch.Tensor:
        return self.head(stream).unflatten(-1, (1, self.shape.layers, self.shape.experts))


class TokenTransformerPredictor(RoutingPredictor):
    """Encodes the prompt before the first token, then decodes token by token with its keys and values kept.

    What is read after the first token (the next question of a chat) goes to the decoder like the answer's tokens.
    """

    def __init__(self, stored: StoredPredictor) -> None:
        super().__init__(stored.shape, horizon=1)
        self.stored = stored
        self._network = TokenTransformer(stored.shape, stored.sizes).eval()
        weights = {name: torch.from_numpy(a.astype(np.float32)) for name, a in stored.arrays.items()}
        self._slope, self._offset = weights.pop("calibration")[0].tolist()
        parameters = dict(self._network.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        self._out = self._empty()
        self.begin()

    def begin(self) -> None:
        self._prompt: list[int] = []
        self._encoded: torch.Tensor | None = None
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def read(self, rows: RoutingTrace) -> None:
        if self._encoded is None:
            self._prompt += rows.token_ids.tolist()
        elif len(rows):
            self._decode(rows.token_ids.tolist())

    def predict(self, token_id: int) -> np.ndarray:
        odds = self._decode([token_id])[0, -1].numpy()
        self._out[:] = sigmoid(odds * self._slope + self._offset)
        return self._out

    def observed(self, experts: np.ndarray, weights: np.ndarray, hidden: np.ndarray | None) -> None:
        pass

    @torch.no_grad()
    def _decode(self, tokens: list[int]) -> torch.Tensor:
        if self._encoded is None:
            self._encoded = self._network.encode(self._prompt)
        return self._network.decode(tokens, self._encoded, self._cache)


def export(
    network: TokenTransformer, calibration: np.ndarray, model: str, history: Mapping[str, Any] | None = None
) -> StoredPredictor:
    """What a file holds: all weights in fp16. calibration: float [1, 2], slope and offset of the log odds."""
    arrays = {name: p.detach().numpy().astype(np.float16) for name, p in network.named_parameters()}
    arrays["calibration"] = calibration.astype(np.float32)
    return StoredPredictor(KIND, model, network.shape, network.sizes, arrays, history or {})
