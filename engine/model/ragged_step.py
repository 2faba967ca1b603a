"""One token of each of several chats in one pass: weights are read once, attention looks at each chat's own keys.

The chats' lengths differ and nothing is padded or copied: the cache hands attention a list of views, and attention
goes through them one by one, as do latent keys where they are expanded and rotary embeddings that depend on the length.
Everything else in a decoder layer works on rows and does not know whose they are.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.model.experts import several_chats
from engine.model.kv_cache import KvCache, KvLayer

NAME = "expertflow_ragged"
FAMILIES = frozenset(  # tested against each chat alone
    [
        "afmoe",
        "aria_text",
        "axk1",
        "beam",
        "cohere2_moe",
        "deepseek_v2",
        "deepseek_v3",
        "dots1",
        "ernie4_5_moe",
        "exaone_moe",
        "flex_olmo",
        "flint",
        "glm4_moe",
        "glm4_moe_lite",
        "gpt_oss",
        "granitemoe",
        "granitemoe_swa",
        "granitemoeshared",
        "hunyuan_v1_moe",
        "hy_v3",
        "kolibri1",
        "laguna",
        "mellum",
        "mimo_v2_flash",
        "minimax_m2",
        "minimax_m3_vl_text",
        "mixtral",
        "olmoe",
        "phimoe",
        "qwen2_moe",
        "qwen3_moe",
        "solar_open",
    ]
)

WINDOW_IN_MASK = frozenset(["phimoe"])  # whose attention is told of a sliding window by its mask alone

_asked = threading.local()  # `attention`: the model's own implementation, while a pass of this thread runs


@dataclass(frozen=True)
class RaggedStates:
    """Keys or values of each chat, views [1, kv_heads, length, head_dim]."""

    parts: tuple[torch.Tensor, ...]


def supports(model: PreTrainedModel, kv: KvCache) -> str | None:
    """None when this model's chats can share a pass, else the reason in words."""
    family = model.config.get_text_config(decoder=True).model_type
    if family not in FAMILIES and model.config.model_type not in FAMILIES:
        return f"attention of {family} is not known to work on several chats at once."
    return None if kv.can_crop else "its recurrent state cannot be shared out."


class RaggedStep:
    """Reads a token of each chat. Not thread-safe."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._config = model.config.get_text_config(decoder=True)
        self._device = next(model.parameters()).device
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
        _look_at_each_chat(model)

    def __call__(self, chats: Sequence[KvCache], tokens: Sequence[int]) -> torch.Tensor:
        """fp32 logits [chats, vocab] after `tokens`, one for each chat, whose caches grow by one position.

        Raises ContextFull, and whatever the experts raise; the caches then are to be cropped to what they were.
        """
        for chat in chats:
            chat.require_room(1)
        positions = [[chat.length] for chat in chats]
        before = self._config._attn_implementation
        _asked.attention = before
        self._config._attn_implementation = NAME
        try:
            with torch.inference_mode(), several_chats():
                output = self._model(
                    input_ids=torch.tensor([[token] for token in tokens], device=self._device),
                    position_ids=torch.tensor(positions, device=self._device),
                    past_key_values=_RaggedCache(chats),
                    use_cache=True,
                )
        finally:
            self._config._attn_implementation = before
        return output.logits[:, -1].float().cpu()


class _RaggedLayer(CacheLayerMixin):
    """One layer of all chats."""

    is_sliding = False
    is_croppable = False

    def __init__(self, layers: Sequence[KvLayer]) -> None:
        super().__init__()
        self._layers = layers
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Each chat's own layer does it."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[RaggedStates, RaggedStates]:
        pairs = [
            layer.update(key_states[row : row + 1], value_states[row : row + 1])
            for row, layer in enumerate(self._layers)
        ]
        return RaggedStates(tuple(keys for keys, _ in pairs)), RaggedStates(tuple(values for _, values in pairs))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return max(layer.get_seq_length() for layer in self._layers)

    def get_max_length(self) -> int:
        return min(layer.get_max_length() for layer in self._layers)


class _RaggedCache(Cache):
    def __init__(self, chats: Sequence[KvCache]) -> None:
        super().__init__(layers=[_RaggedLayer(layers) for layers in zip(*(c.layers for c in chats), strict=True)])


def _look_at_each_chat(model: PreTrainedModel) -> None:
    """Has the parts of `model` that depend on a chat's length go through the chats; of one chat they do as before."""
    for name, module in model.named_modules():
        if hasattr(module, "expand_kv"):
            module.expand_kv = functools.partial(_expand_each, module.expand_kv)
        if name.endswith("rotary_emb"):
            module.forward = functools.partial(_embed_each, module.forward)


def _expand_each(
    expand: Callable[..., tuple[torch.Tensor, torch.Tensor]], latent: Any, rotated: Any
) -> tuple[Any, Any]:
    """Keys and values of each chat from what multi-head latent attention caches."""
    if not isinstance(latent, RaggedStates):
        return expand(latent, rotated)
    keys, values = zip(*map(expand, latent.parts, rotated.parts), strict=True)
    return RaggedStates(keys), RaggedStates(values)


def _embed_each(
    forward: Callable[..., Any], x: torch.Tensor, position_ids: torch.Tensor, *more: Any, **settings: Any
) -> Any:
    """What each chat's positions are turned by: some scale it by the longest of those that they are given."""
    if len(position_ids) == 1:
        return forward(x, position_ids, *more, **settings)
    found = [forward(x, position_ids[row : row + 1], *more, **settings) for row in range(len(position_ids))]
    if isinstance(found[0], torch.Tensor):  # cosine and sine as one complex number
        return torch.cat(found)
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: RaggedStates,
    value: RaggedStates,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The model's own attention for each chat, whose newest token sees all of it, or the sliding window's part."""
    attention = _own_attention(module)
    config: Any = module.config
    window = config.sliding_window if config.model_type in WINDOW_IN_MASK else settings.get("sliding_window")
    outputs = []
    for row, (keys, values) in enumerate(zip(key.parts, value.parts, strict=True)):
        if window is not None:
            keys, values = keys[:, :, -window:], values[:, :, -window:]
        outputs.append(attention(module, query[row : row + 1], keys, values, None, **settings)[0])
    return torch.cat(outputs), None


def _own_attention(module: torch.nn.Module) -> Callable[..., Any]:
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(_asked.attention, eager)
